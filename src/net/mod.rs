//! Bytes on the wire: frames with a length, a checksum and a limit, carried over non-blocking TCP.
//!
//! Four small parts, none of which knows what a message means:
//!
//! * [`frame`] cuts a stream of bytes into frames. It has no socket and no clock, so it is tested with any bytes.
//! * [`connection`] is one socket with its two bounded buffers, driven by an edge-triggered `mio::Poll`.
//! * [`address`] names where servers are, and looks names up beside the loop.
//! * [`listen`] accepts connections and survives running out of file descriptors.
//!
//! Two rules hold everywhere. Nothing that arrives can make a server allocate more than a limit that was set before it
//! arrived. And nothing that one peer does (garbage, silence, a flood, a reset) concerns any other connection: every
//! failure is a value that belongs to one [`Connection`], and the owner's answer to it is to close that one.
//!
//! Deliberately absent: messages and their encoding (`codec`), who the peer is and whether it may talk to us (the first
//! frame, checked in `runtime`), reconnecting, time-outs, and delivery guarantees. A frame that was queued may be lost
//! with its connection; Paxos and the exactly-once ids above are built for that.

pub mod address;
pub mod connection;
pub mod frame;
pub mod listen;

pub use address::{Address, Resolver};
pub use connection::{Connection, Limits, ReadStatus};
pub use frame::{Frame, FrameError, FrameReader, encode};
pub use listen::{Accepted, SpareFd, accept, listen, listen_at};

/// Decides when a buffer gives memory back: at once when it is far too large, else after it stayed nearly empty for a
/// while. Giving back after every large frame would make a busy connection allocate, and zero, once per frame.
#[derive(Debug, Default)]
struct Slack {
    quiet: u8,
}

impl Slack {
    /// A buffer of this size is never worth shrinking.
    const KEEP_BYTES: usize = 64 * 1024;
    /// Above this size memory goes back as soon as it is not needed.
    const LARGE_BYTES: usize = 1024 * 1024;
    /// So many nearly empty uses in a row, and the buffer counts as quiet.
    const QUIET_USES: u8 = 16;

    /// Asked each time a buffer was emptied as far as it goes: `used` bytes at most were in it since the last time,
    /// `left` are in it now. True says: replace it by one of `KEEP_BYTES`, or of `left` if that is more.
    fn is_excessive(&mut self, used: usize, left: usize, capacity: usize) -> bool {
        self.quiet = if used < capacity / 4 { self.quiet.saturating_add(1) } else { 0 };
        let excessive = capacity > Self::KEEP_BYTES
            && left < capacity / 4
            && (capacity > Self::LARGE_BYTES || self.quiet >= Self::QUIET_USES);
        if excessive {
            self.quiet = 0;
        }
        excessive
    }
}
