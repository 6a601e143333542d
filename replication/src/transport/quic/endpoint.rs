//! A socket with its endpoint, and the tasks of a transport on it: opened, shared among guests, shut down.
//!
//! Deliberately knows neither peers nor what connections are for.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use quinn::{AsyncUdpSocket, Endpoint, Runtime as _, ServerConfig, TokioRuntime};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::{BindError, CLOSE_TIMEOUT, QuicConfig, link, socket};
use crate::store::NodeId;

/// A bound socket and the endpoint on it. Closes its connections when dropped.
pub(super) struct Bound {
    pub(super) endpoint: Endpoint,
    socket: Weak<dyn AsyncUdpSocket>,
    pub(super) addr: SocketAddr,
    /// Receive buffer as the kernel granted it, in bytes.
    pub(super) granted_buffer: usize,
    /// Turns of first attempts to connect.
    pub(super) first_attempts: Arc<Semaphore>,
}

impl Bound {
    /// Binds the socket that `config` asks for. It accepts no connections yet.
    pub(super) fn open(config: &QuicConfig) -> Result<Self, BindError> {
        tokio::runtime::Handle::try_current().map_err(|_| BindError::NoRuntime)?;
        let failed = |source| BindError::Socket { addr: config.bind, source };
        let (socket, granted_buffer) = socket::open(config.bind, config.socket_buffer_bytes)?;
        let mut socket = TokioRuntime.wrap_udp_socket(socket).map_err(failed)?;
        if let Some(wrap) = &config.wrap_socket {
            socket = wrap(socket);
        }
        let addr = socket.local_addr().map_err(failed)?;
        let weak = Arc::downgrade(&socket);
        let parameters = socket::endpoint_config(config)?;
        let endpoint = Endpoint::new_with_abstract_socket(parameters, None, socket, Arc::new(TokioRuntime));
        let (endpoint, first_attempts) =
            (endpoint.map_err(failed)?, Arc::new(Semaphore::new(link::MAX_FIRST_ATTEMPTS)));
        Ok(Self { endpoint, socket: weak, addr, granted_buffer, first_attempts })
    }

    fn close(&self) {
        // Repeating it does nothing.
        self.endpoint.close(link::code::CLOSING, b"closed");
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        self.close();
    }
}

/// What runs and what must be stopped; dropping it stops it.
pub(super) struct Running {
    /// Shared with other guests, if there are any.
    pub(super) bound: Arc<Bound>,
    pub(super) accepting: JoinSet<()>,
    pub(super) keeping: BTreeMap<NodeId, JoinSet<()>>,
}

impl Running {
    /// From now on connections are accepted by `server`.
    pub(super) fn accept(&self, server: ServerConfig) {
        self.bound.endpoint.set_server_config(Some(server));
    }

    /// Stops the tasks, lets the peers take note, and waits until the socket is released, unless others go on over it.
    pub(super) async fn shut_down(mut self) {
        if Arc::strong_count(&self.bound) == 1 {
            self.bound.close();
        }
        for tasks in self.keeping.values_mut() {
            tasks.shutdown().await;
        }
        self.accepting.shutdown().await;
        let Some(bound) = Arc::into_inner(self.bound) else { return };
        bound.close();
        if timeout(CLOSE_TIMEOUT, bound.endpoint.wait_idle()).await.is_err() {
            tracing::warn!("connections not drained after {CLOSE_TIMEOUT:?}");
        }
        let socket = bound.socket.clone();
        drop(bound);
        // quinn's driver owns the socket and ends by itself after its last handle is gone, without telling anybody.
        let released = async {
            while socket.strong_count() > 0 {
                sleep(Duration::from_millis(1)).await;
            }
        };
        if timeout(CLOSE_TIMEOUT, released).await.is_err() {
            tracing::warn!("socket not released after {CLOSE_TIMEOUT:?}");
        }
    }
}
