//! Sockets whose network can be cut: a datagram to an address on the other side of a cut is not sent.

use std::collections::BTreeSet;
use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use replication::transport::quic::SocketWrapper;

/// The addresses cut off from all others, shared by the sockets of a cluster.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cuts(Arc<Mutex<BTreeSet<SocketAddr>>>);

impl Cuts {
    pub(crate) fn isolate(&self, side: impl IntoIterator<Item = SocketAddr>) {
        *self.0.lock().unwrap() = side.into_iter().collect();
    }

    pub(crate) fn silence(&self, addr: SocketAddr) {
        self.0.lock().unwrap().insert(addr);
    }

    fn crosses(&self, one: SocketAddr, other: SocketAddr) -> bool {
        let cut = self.0.lock().unwrap();
        cut.contains(&one) != cut.contains(&other)
    }

    pub(crate) fn wrapper(&self) -> SocketWrapper {
        let cuts = self.clone();
        Arc::new(move |inner| Arc::new(CutSocket { inner, cuts: cuts.clone() }))
    }
}

struct CutSocket {
    inner: Arc<dyn AsyncUdpSocket>,
    cuts: Cuts,
}

impl fmt::Debug for CutSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("CutSocket").field(&self.inner).finish()
    }
}

impl AsyncUdpSocket for CutSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.inner.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        if self.cuts.crosses(self.inner.local_addr()?, transmit.destination) {
            return Ok(());
        }
        self.inner.try_send(transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.inner.poll_recv(cx, bufs, meta)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.inner.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.inner.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}
