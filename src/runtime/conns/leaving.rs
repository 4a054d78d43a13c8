//! Connections on which all is said: what is queued still leaves, then the other end is told that nothing follows.
//!
//! A reply that is thrown away with its connection makes a client believe that a transfer failed which was committed. So nothing
//! is closed before its buffer is empty, and then what the other end still sends is read for a moment: a system that finds unread
//! bytes at the end takes back what it has not delivered yet.

use std::io::{self, ErrorKind, Read};
use std::net::Shutdown;
use std::time::Duration;

use crate::net::Connection;
use crate::runtime::conns::{Conns, Item};
use crate::types::Time;

/// How long what is queued may take to leave, and how long, and how much, is read of what comes behind.
const PATIENCE: Duration = Duration::from_secs(5);
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 1 << 20;

pub(super) struct Leaving {
    connection: Connection,
    until: Time,
    /// Bytes read since everything has left.
    behind: Option<usize>,
}

impl Conns {
    /// Closes one connection once everything that is queued on it has left. For its owner it is closed now.
    pub fn leave(&mut self, token: usize, why: &str, received: &mut Vec<Item>) {
        let Some(conn) = self.forget(token, why, received) else { return };
        let until = self.now + PATIENCE;
        self.leaving.insert(token, Leaving { connection: conn.connection, until, behind: None });
        self.step_leaving(token);
    }

    /// Goes on as far as the socket allows.
    pub(super) fn step_leaving(&mut self, token: usize) {
        let Some(leaving) = self.leaving.get_mut(&token) else { return };
        let (before, now) = (leaving.connection.bytes_out(), self.now);
        let open = leaving.step(now);
        self.bytes_closed.1 += leaving.connection.bytes_out() - before;
        if !open.unwrap_or(false) {
            self.leaving.remove(&token);
        }
    }

    /// Whether all that was said on connections that are over has left.
    pub fn nobody_leaves(&self) -> bool {
        self.leaving.is_empty()
    }

    pub(super) fn expire_leaving(&mut self, now: Time) {
        self.leaving.retain(|_, leaving| now < leaving.until);
    }
}

impl Leaving {
    /// Whether there is more to do.
    fn step(&mut self, now: Time) -> io::Result<bool> {
        if !self.connection.flush()? {
            return Ok(true);
        }
        let mut stream = self.connection.stream();
        let behind = match &mut self.behind {
            Some(behind) => behind,
            None => {
                stream.shutdown(Shutdown::Write)?;
                self.until = now + LINGER;
                self.behind.insert(0)
            }
        };
        let mut buffer = [0; 16 * 1024];
        while *behind < LINGER_BYTES {
            match stream.read(&mut buffer) {
                Ok(0) => return Ok(false),
                Ok(read) => *behind += read,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(true),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(false)
    }
}
