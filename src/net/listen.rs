//! Listening and accepting, also when the process has run out of file descriptors.
//!
//! The listener is edge-triggered like every socket: after an event, accept until [`Accepted::Drained`]. When no
//! descriptor is left, `accept` fails while the connection stays in the kernel's queue. Trying again at once would spin,
//! and no further event comes for what already waits; so the caller pauses, and tries again on a timer and whenever it
//! closes a connection. Meanwhile [`SpareFd`] lets it turn away those who wait, who would otherwise hang for as long as
//! the shortage lasts.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;

use mio::net::{TcpListener, TcpStream};

use super::Address;

/// Binds a listener, and says which port it got where `addr` leaves that to the system (port 0). A name is looked up first,
/// and its first address that can be had is taken.
///
/// # Errors
///
/// The name is unknown, or none of its addresses is this machine's and free.
pub fn listen_at(address: &Address) -> io::Result<(TcpListener, SocketAddr)> {
    address.first(listen)
}

/// The same for an address that is none of a name.
///
/// # Errors
///
/// It is not this machine's, or not free.
pub fn listen(addr: SocketAddr) -> io::Result<(TcpListener, SocketAddr)> {
    let bound = TcpListener::bind(addr).and_then(|listener| {
        let local = listener.local_addr()?;
        Ok((listener, local))
    });
    bound.map_err(|error| io::Error::new(error.kind(), format!("cannot listen on {addr}: {error}")))
}

/// What one attempt to accept brought.
#[derive(Debug)]
pub enum Accepted {
    /// A new connection. Go on accepting.
    Stream(TcpStream, SocketAddr),
    /// That one connection was lost before it was accepted. Go on accepting.
    Lost(io::Error),
    /// Nobody waits. An event announces the next.
    Drained,
    /// Descriptors or memory have run out, or the listener itself is broken: stop accepting, and try again on a timer.
    Pause(io::Error),
}

/// Accepts one connection, and sorts the errors by what is to be done about them.
pub fn accept(listener: &TcpListener) -> Accepted {
    loop {
        match listener.accept() {
            Ok((stream, peer)) => return Accepted::Stream(stream, peer),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Accepted::Drained,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if is_about_one_connection(&error) => return Accepted::Lost(error),
            // What is not known to concern one connection only is treated as lasting: to go on could spin for ever.
            Err(error) => return Accepted::Pause(error),
        }
    }
}

/// Linux hands errors that are already pending on a new connection to `accept` (see accept(2)).
fn is_about_one_connection(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::ECONNABORTED
                | libc::ECONNRESET
                | libc::EPERM
                | libc::EPROTO
                | libc::ENOPROTOOPT
                | libc::EOPNOTSUPP
                | libc::ETIMEDOUT
                | libc::ENETDOWN
                | libc::ENETUNREACH
                | libc::EHOSTDOWN
                | libc::EHOSTUNREACH
        )
    )
}

/// A descriptor kept in reserve, with which one waiting connection at a time can be taken and closed.
#[derive(Debug)]
pub struct SpareFd(Option<File>);

impl SpareFd {
    /// Reserves the descriptor. Do this at the start, while there are some.
    pub fn reserve() -> io::Result<SpareFd> {
        Ok(SpareFd(Some(File::open("/dev/null")?)))
    }

    /// Gives the reserved descriptor to the next waiting connection, closes that, and reserves it again.
    ///
    /// Returns whom it turned away, or `None` when nobody waits. An error means that another thread was faster to take
    /// the descriptor; the next call tries again.
    pub fn turn_away(&mut self, listener: &TcpListener) -> io::Result<Option<SocketAddr>> {
        self.0 = None;
        let turned_away = loop {
            match accept(listener) {
                Accepted::Stream(_, peer) => break Ok(Some(peer)),
                Accepted::Lost(_) => {}
                Accepted::Drained => break Ok(None),
                Accepted::Pause(error) => break Err(error),
            }
        };
        // Failing is no error here: the reserve is empty until it can be filled, and the result above still stands.
        self.0 = File::open("/dev/null").ok();
        turned_away
    }
}
