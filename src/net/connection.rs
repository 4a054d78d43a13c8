//! One non-blocking TCP connection with its two bounded buffers.
//!
//! **Edge-triggered.** mio reports that a socket *became* readable or writable, once. Two rules follow, and this file
//! keeps both: reading goes on until nothing is left, or tells the caller to come back ([`ReadStatus::More`]); writing goes
//! on until everything is out or the system says `WouldBlock`. A read that did not fill its space has taken what there
//! was, and whatever arrives later is another event: that spares the call which would only say `WouldBlock`, for half of
//! all reads. It does not show the end of the stream, which may stand behind those bytes and is not reported again. So who
//! gets an event passes it on ([`Connection::announce`]), and once it told of the end, reading goes on until that is met. The
//! same goes for urgent data, at which a read stops though more is there.
//!
//! **Interest** is both directions and urgent data, registered once. Because [`Connection::flush`] leaves bytes behind only after
//! `WouldBlock`, each such moment is followed by an edge when there is room again, and no edge can be missed; while
//! nothing is stuck, the kernel does not wake anybody for a socket that stays writable. So there is no system call to
//! change interest, and no state that could disagree with the poll.
//!
//! **Spurious events** are allowed by mio: every operation here may be called at any time and finds nothing to do.

use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::time::Duration;

use mio::event::Event;
use mio::net::TcpStream;
use mio::{Interest, Registry, Token};
use rustix::net::sockopt;

use super::Slack;
use super::frame::{self, Frame, FrameError, FrameReader};

/// What one connection may make this process hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Largest frame accepted from the peer, in bytes of kind and payload.
    pub frame_bytes: usize,
    /// No frame is added to a send buffer that holds this much. The one that crosses the line is taken whole, so
    /// that a frame larger than the limit can still be sent; the buffer holds at most this and one frame.
    pub send_bytes: usize,
}

/// Why [`Connection::fill`] stopped reading.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReadStatus {
    /// Everything that had arrived was read; an event announces the next bytes.
    Drained,
    /// The budget of one call, or the buffer, is used up. No event will come for what is left: take the frames, serve
    /// the other connections, and call again without waiting.
    More,
    /// The peer will send no more. Frames that are complete can still be taken; then close.
    Eof,
}

/// A connection to a server or a client, outgoing or accepted.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    connecting: bool,
    /// An event said that a short read may have left something.
    thorough: bool,
    limits: Limits,
    received: FrameReader,
    /// Encoded frames; what stands before `written` has left. A short write only moves `written`.
    outgoing: Vec<u8>,
    written: usize,
    slack: Slack,
    bytes_in: u64,
    bytes_out: u64,
}

impl Connection {
    /// Bytes read by one call of [`fill`](Self::fill) at most, so that one busy connection cannot starve the others.
    pub const READ_BUDGET: usize = 256 * 1024;

    /// Begins to connect. The connection can be registered and queued to at once; the outcome arrives as an event,
    /// after which `fill`, `flush` or [`finish_connect`](Self::finish_connect) reports it.
    pub fn connect(addr: SocketAddr, limits: Limits) -> io::Result<Connection> {
        Connection::new(TcpStream::connect(addr)?, limits, true)
    }

    /// Wraps a socket that [`accept`](super::accept) returned.
    pub fn accepted(stream: TcpStream, limits: Limits) -> io::Result<Connection> {
        Connection::new(stream, limits, false)
    }

    fn new(stream: TcpStream, limits: Limits, connecting: bool) -> io::Result<Connection> {
        // The loop already gathers a turn's messages into one write; Nagle's algorithm would only hold them back.
        stream.set_nodelay(true)?;
        Ok(Connection {
            stream,
            connecting,
            thorough: false,
            limits,
            received: FrameReader::new(),
            outgoing: Vec::new(),
            written: 0,
            slack: Slack::default(),
            bytes_in: 0,
            bytes_out: 0,
        })
    }

    /// Once per connection, before the first `fill` or `flush`. Dropping the connection ends the registration.
    pub fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        let interest = Interest::READABLE | Interest::WRITABLE | Interest::PRIORITY;
        registry.register(&mut self.stream, token, interest)
    }

    /// Lets the system find out when the other end is gone without a word, as after a loss of power: within about this time, it
    /// ends the connection if nothing that is sent is confirmed or taken, and asks whether anybody is there if nothing is sent.
    pub fn give_up_after(&self, patience: Duration) -> io::Result<()> {
        let millis = u32::try_from(patience.as_millis()).unwrap_or(u32::MAX);
        let socket = self.stream.as_fd();
        sockopt::set_tcp_user_timeout(socket, millis)?;
        sockopt::set_tcp_keepidle(socket, (patience / 2).max(Duration::from_secs(1)))?;
        sockopt::set_tcp_keepintvl(socket, (patience / 4).max(Duration::from_secs(1)))?;
        Ok(sockopt::set_socket_keepalive(socket, true)?)
    }

    /// Replaces the limits, once it is known who the peer is.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Whether the connection stands; `Ok(false)` while it is still being made. An error (refused, unreachable) is
    /// final.
    pub fn finish_connect(&mut self) -> io::Result<bool> {
        if !self.connecting {
            return Ok(true);
        }
        if let Some(error) = self.stream.take_error()? {
            return Err(error);
        }
        match self.stream.peer_addr() {
            Ok(peer) => {
                // A system that picks the listener's own free port as source port connects the socket to itself, and
                // then keeps the server that should be there from listening.
                if self.stream.local_addr()? == peer {
                    return Err(io::Error::new(
                        ErrorKind::ConnectionRefused,
                        "nobody listens there (the socket met itself)",
                    ));
                }
                self.connecting = false;
                Ok(true)
            }
            Err(error) if error.kind() == ErrorKind::NotConnected => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// An event of this connection. If it tells of the end of the stream, of an error or of urgent data, reads go on until
    /// nothing is left for certain.
    pub fn announce(&mut self, event: &Event) {
        self.thorough |= event.is_read_closed() || event.is_error() || event.is_priority();
    }

    /// Reads what has arrived, up to the budget. An error concerns this connection alone: close it.
    pub fn fill(&mut self) -> io::Result<ReadStatus> {
        self.fill_up_to(Self::READ_BUDGET)
    }

    /// The same with another budget.
    pub fn fill_up_to(&mut self, mut budget: usize) -> io::Result<ReadStatus> {
        if !self.finish_connect()? {
            return Ok(ReadStatus::Drained);
        }
        while budget > 0 {
            let space = self.received.space(self.limits.frame_bytes);
            if space.is_empty() {
                return Ok(ReadStatus::More);
            }
            let room = space.len().min(budget);
            match self.stream.read(&mut space[..room]) {
                Ok(0) => return Ok(ReadStatus::Eof),
                Ok(count) => {
                    self.received.filled(count);
                    self.bytes_in += count as u64;
                    budget -= count;
                    if count < room && !self.thorough {
                        return Ok(ReadStatus::Drained);
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(ReadStatus::Drained),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(ReadStatus::More)
    }

    /// The next whole frame that was read, or `None` until `fill` has brought more. Take all of them after each
    /// `fill`. An error is final and repeats: close.
    pub fn next_frame(&mut self) -> Result<Option<Frame<'_>>, FrameError> {
        self.received.next_frame(self.limits.frame_bytes)
    }

    /// What was read and not taken yet, for who speaks something else than frames; see [`FrameReader::pending`].
    pub fn pending(&self) -> &[u8] {
        self.received.pending()
    }

    /// Takes the first bytes of that.
    pub fn consume(&mut self, count: usize) {
        self.received.consume(count);
    }

    /// Appends a frame to the send buffer; `write` appends the payload. False: the buffer is full, `write` was not
    /// called and nothing was queued. Nothing leaves before `flush`.
    #[must_use = "a frame that was not queued is lost"]
    pub fn queue(&mut self, kind: u8, write: impl FnOnce(&mut Vec<u8>)) -> bool {
        let room = self.make_room();
        if room {
            frame::encode(kind, &mut self.outgoing, write);
        }
        room
    }

    /// The same for whole frames made with [`frame::encode`], which several connections are sent alike, or for bytes of who
    /// speaks something else.
    #[must_use = "a frame that was not queued is lost"]
    pub fn queue_encoded(&mut self, frames: &[u8]) -> bool {
        let room = self.make_room();
        if room {
            self.outgoing.extend_from_slice(frames);
        }
        room
    }

    fn make_room(&mut self) -> bool {
        if self.is_full() {
            return false;
        }
        // Moved at most as often as written: each byte left is paid for by one that has gone.
        if self.written > 0 && self.written >= self.queued_bytes() {
            self.outgoing.drain(..self.written);
            self.written = 0;
        }
        true
    }

    /// Writes what is queued, as far as the system takes it; true when all of it has left. After false an event
    /// announces room; call again then. An error concerns this connection alone: close it.
    pub fn flush(&mut self) -> io::Result<bool> {
        if !self.finish_connect()? {
            return Ok(!self.wants_write());
        }
        while self.wants_write() {
            match self.stream.write(&self.outgoing[self.written..]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(count) => {
                    self.written += count;
                    self.bytes_out += count as u64;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if self.written > 0 {
            let (used, capacity) = (self.outgoing.len(), self.outgoing.capacity());
            self.outgoing.clear();
            self.written = 0;
            if self.slack.is_excessive(used, 0, capacity) {
                self.outgoing.shrink_to(Slack::KEEP_BYTES);
            }
        }
        Ok(true)
    }

    /// Whether frames are queued that have not left yet.
    pub fn wants_write(&self) -> bool {
        self.queued_bytes() > 0
    }

    /// Bytes queued that have not left yet.
    pub fn queued_bytes(&self) -> usize {
        self.outgoing.len() - self.written
    }

    /// Whether `queue` would refuse a frame now; the sign to stop reading a client.
    pub fn is_full(&self) -> bool {
        self.queued_bytes() >= self.limits.send_bytes
    }

    /// Bytes read that are not a whole frame yet. At `Eof`, after the last frame: above zero if a frame was cut.
    pub fn unfinished_bytes(&self) -> usize {
        self.received.pending_bytes()
    }

    /// Memory that both buffers hold.
    pub fn buffer_bytes(&self) -> usize {
        self.received.capacity() + self.outgoing.capacity()
    }

    /// Gives back the memory that the buffers do not need at the moment: for a connection that has fallen silent.
    pub fn release(&mut self) {
        self.received.release();
        if self.written > 0 {
            self.outgoing.drain(..self.written);
            self.written = 0;
        }
        self.outgoing.shrink_to_fit();
    }

    /// Bytes read since the connection was made, headers included.
    pub fn bytes_in(&self) -> u64 {
        self.bytes_in
    }

    /// Bytes written since the connection was made, headers included.
    pub fn bytes_out(&self) -> u64 {
        self.bytes_out
    }

    /// The socket, for its addresses and options.
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};

    /// What a system may do by chance when a server is down whose port it gives out, done on purpose.
    #[test]
    fn a_socket_that_meets_itself_is_refused() {
        let address = |port: u16| libc::sockaddr_in {
            sin_family: libc::AF_INET as libc::sa_family_t,
            sin_port: port.to_be(),
            sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes([127, 0, 0, 1]) },
            sin_zero: [0; 8],
        };
        let len = size_of::<libc::sockaddr_in>() as libc::socklen_t;
        // SAFETY: the descriptor is new and owned here alone; the pointers are to addresses of the length given.
        let stream = unsafe {
            let fd = libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0);
            let any = address(0);
            let socket = std::net::TcpStream::from(OwnedFd::from_raw_fd(fd));
            assert_eq!(libc::bind(fd, (&raw const any).cast(), len), 0);
            let port = socket.local_addr().expect("bound").port();
            let own = address(port);
            assert_eq!(libc::connect(fd, (&raw const own).cast(), len), 0);
            socket.set_nonblocking(true).expect("set");
            TcpStream::from_raw_fd(socket.into_raw_fd())
        };
        let limits = Limits { frame_bytes: 100, send_bytes: 100 };
        let mut connection = Connection::new(stream, limits, true).expect("a connection");
        let error = connection.fill().expect_err("it met itself");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    }
}
