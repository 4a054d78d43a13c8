//! As many connections as the process can afford. Each holds a descriptor, and a server that has none left can neither write
//! its log nor hear its peers.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::time::Duration;

use mio::net::TcpStream;

use crate::runtime::conns::{Conn, Conns, Door, Item, Role};

/// Connections at an address for servers of the cluster only; there are eight others at most.
const PEERS: usize = 32;

/// What is said to whoever is turned away. Who speaks RESP reads it; others find that the connection ends.
const FULL: &[u8] = b"-ERR max number of clients reached\r\n";

pub(super) struct Crowd {
    /// How many there may be that are no servers of the cluster.
    most: usize,
    /// Turned away, and closed to make room, since that was last told.
    refused: u64,
    closed: u64,
}

impl Default for Crowd {
    fn default() -> Crowd {
        Crowd { most: usize::MAX, refused: 0, closed: 0 }
    }
}

impl Conns {
    /// Sets how many connections there may be that came in and are not of servers of the cluster.
    pub fn admit_at_most(&mut self, connections: usize) {
        self.crowd.most = connections;
    }

    /// Whether one more may come in through `door`. If there are too many, the one that has been idle for longest goes, except
    /// for operators and for those that wait for an answer.
    pub(super) fn has_room(&mut self, door: Door, received: &mut Vec<Item>) -> bool {
        let most = if door == Door::Peers { PEERS } else { self.crowd.most };
        let counts = |conn: &Conn| match conn.role {
            Role::Dialled(_) => false,
            Role::Peer(_) => door == Door::Peers && conn.door == door,
            _ => (conn.door == Door::Peers) == (door == Door::Peers),
        };
        let leaving = self.leaving.len();
        if self.conns.len() + leaving < most
            || self.conns.values().filter(|conn| counts(conn)).count() + leaving < most
        {
            return true;
        }
        // A client that misses an answer asks again after this time.
        let patience: Duration = 2 * self.context.timeouts.unreachable();
        let is_idle = |conn: &Conn| match conn.role {
            Role::Stranger => true,
            Role::Resp => conn.unanswered == 0 && !conn.connection.wants_write(),
            Role::Client => self.now.since(conn.active) > patience,
            Role::Peer(_) | Role::Admin | Role::Dialled(_) => false,
        };
        let idle = self.conns.iter().filter(|(_, conn)| counts(conn) && is_idle(conn));
        let longest = idle.min_by_key(|(token, conn)| (conn.active, **token)).map(|(token, _)| *token);
        let Some(token) = longest else { return false };
        self.crowd.closed += 1;
        self.close(token, "it was idle for longest, and there is no room for more", received);
        true
    }

    /// Turns somebody away.
    pub(super) fn refuse(&mut self, mut stream: TcpStream) {
        self.crowd.refused += 1;
        // A new socket has room for so few bytes. What has come already is read, since closing would otherwise take the answer
        // back.
        let _ = stream.write(FULL);
        let _ = stream.shutdown(Shutdown::Write);
        let _ = stream.read(&mut [0; 4096]);
    }

    /// Says how many were turned away, if any.
    pub(super) fn tell_of_crowd(&mut self) {
        let (refused, closed) =
            (std::mem::take(&mut self.crowd.refused), std::mem::take(&mut self.crowd.closed));
        if refused + closed > 0 {
            log::warn!(
                "there are {} connections, as many as there may be: {closed} idle ones were closed for newcomers, and \
                 {refused} newcomers turned away",
                self.crowd.most
            );
        }
    }
}
