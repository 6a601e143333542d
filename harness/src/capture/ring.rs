//! Packet heads from the kernel by shared memory: an AF_PACKET socket with a receive ring of version 2
//! (`Documentation/networking/packet_mmap.rst` of Linux).
//!
//! The kernel copies the head of each packet into the next slot; reading it costs no system call and no packet buffer, which
//! a receive per packet, as pnet's channel makes it, costs: with it a capture took 4 % of a round on two cores. The socket is
//! opened without a protocol, so that nothing comes before filter and ring are in place, then bound to its interface.
//!
//! It does not know what the bytes mean.

use std::io;
use std::os::fd::AsRawFd as _;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use socket2::{Domain, SockFilter, Socket, Type};

use super::filter::{HEAD_BYTES, Instruction};

/// Bytes of a slot: the kernel's header, the address, and the head.
const SLOT_BYTES: usize = 256;
/// Bytes of the pieces that the kernel allocates: a multiple of every size of pages in use.
const BLOCK_BYTES: usize = 64 * 1024;

// The kernel puts the packet's bytes behind its header at the latest from here (`tpacket_rcv`).
const _: () =
    assert!(libc::TPACKET2_HDRLEN + 2 * libc::TPACKET_ALIGNMENT + HEAD_BYTES as usize <= SLOT_BYTES);

/// The socket and its ring.
#[derive(Debug)]
pub struct Ring {
    socket: Socket,
    slots: NonNull<u8>,
    slot_count: usize,
    /// The slot that the kernel fills next, or has filled.
    at: usize,
}

// SAFETY: the memory belongs to this value alone, and any thread may read it.
unsafe impl Send for Ring {}

impl Ring {
    /// Collects what passes `filter` on the interface of this index, in about `bytes` of memory, at least 64 KiB: a packet
    /// takes 256 B.
    ///
    /// # Errors
    /// The system's: without CAP_NET_RAW it is [`io::ErrorKind::PermissionDenied`].
    pub fn open(interface: u32, filter: &[Instruction], bytes: usize) -> io::Result<Self> {
        let socket = Socket::new(Domain::PACKET, Type::RAW, None)?;
        let steps = filter.iter().map(|step| SockFilter::new(step.code, step.jt, step.jf, step.k));
        socket.attach_filter(&steps.collect::<Vec<_>>())?;
        let blocks = bytes.div_ceil(BLOCK_BYTES).max(1);
        let slot_count = blocks * (BLOCK_BYTES / SLOT_BYTES);
        set_option(&socket, libc::PACKET_VERSION, &(libc::tpacket_versions::TPACKET_V2 as libc::c_int))?;
        let request = libc::tpacket_req {
            tp_block_size: BLOCK_BYTES as libc::c_uint,
            tp_block_nr: blocks as libc::c_uint,
            tp_frame_size: SLOT_BYTES as libc::c_uint,
            tp_frame_nr: slot_count as libc::c_uint,
        };
        set_option(&socket, libc::PACKET_RX_RING, &request)?;
        let slots = map(&socket, blocks * BLOCK_BYTES)?;
        let ring = Self { socket, slots, slot_count, at: 0 };
        ring.bind(interface)?;
        Ok(ring)
    }

    /// Hands the next packet's head and its length to `count`, both from its Ethernet header on; false if there is none.
    pub fn next(&mut self, count: impl FnOnce(&[u8], u64)) -> bool {
        // SAFETY: `at` is below `slot_count`, so the slot is within the mapping.
        let slot = unsafe { self.slots.add(self.at * SLOT_BYTES) };
        // SAFETY: the status is the first word of a slot, which is aligned; kernel and process share it as an atomic.
        let status = unsafe { AtomicU32::from_ptr(slot.cast().as_ptr()) };
        if status.load(Ordering::Acquire) & libc::TP_STATUS_USER == 0 {
            return false;
        }
        // SAFETY: the kernel has written a header at the begin of the slot and leaves it alone until it is given back.
        let header = unsafe { slot.cast::<libc::tpacket2_hdr>().read() };
        let from = usize::from(header.tp_mac).min(SLOT_BYTES);
        let length = (header.tp_snaplen as usize).min(SLOT_BYTES - from);
        // SAFETY: within the slot, by the two lines above.
        let head = unsafe { std::slice::from_raw_parts(slot.add(from).as_ptr(), length) };
        count(head, header.tp_len.into());
        status.store(libc::TP_STATUS_KERNEL, Ordering::Release);
        self.at = (self.at + 1) % self.slot_count;
        true
    }

    /// What has befallen the socket: the interface is down or gone, for example.
    ///
    /// # Errors
    /// That.
    pub fn check(&self) -> io::Result<()> {
        self.socket.take_error()?.map_or(Ok(()), Err)
    }

    /// Packets that found no free slot since the last question.
    #[must_use]
    pub fn take_dropped(&self) -> u64 {
        let mut statistics = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
        let mut size = size_of::<libc::tpacket_stats>() as libc::socklen_t;
        // SAFETY: the kernel writes at most `size` bytes into a value of that size.
        let outcome = unsafe {
            libc::getsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                (&raw mut statistics).cast(),
                &raw mut size,
            )
        };
        if outcome < 0 { 0 } else { u64::from(statistics.tp_drops) }
    }

    fn bind(&self, interface: u32) -> io::Result<()> {
        let address = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as libc::c_ushort,
            sll_protocol: (libc::ETH_P_ALL as u16).to_be(),
            sll_ifindex: libc::c_int::try_from(interface).map_err(io::Error::other)?,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        };
        // SAFETY: the address outlives the call, and its size is given.
        let outcome = unsafe {
            libc::bind(
                self.socket.as_raw_fd(),
                (&raw const address).cast(),
                size_of::<libc::sockaddr_ll>() as libc::socklen_t,
            )
        };
        if outcome < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, of this length, and nothing refers to it any more.
        unsafe { libc::munmap(self.slots.as_ptr().cast(), self.slot_count * SLOT_BYTES) };
    }
}

fn set_option<T>(socket: &Socket, option: libc::c_int, value: &T) -> io::Result<()> {
    // SAFETY: the value outlives the call, and its size is given.
    let outcome = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            option,
            std::ptr::from_ref(value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    };
    if outcome < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn map(socket: &Socket, bytes: usize) -> io::Result<NonNull<u8>> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping, at an address of the kernel's choice, touches no memory that is in use.
    let place = unsafe {
        libc::mmap(std::ptr::null_mut(), bytes, protection, libc::MAP_SHARED, socket.as_raw_fd(), 0)
    };
    if place == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(place.cast()).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
}
