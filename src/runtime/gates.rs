//! Where connections come in: one listener for everybody, or one for the servers of the cluster and one for the others.

use std::io;
use std::time::Duration;

use mio::net::TcpListener;
use mio::{Interest, Registry, Token};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::Topology;
use crate::config::limits::CONNECTIONS_LEAST;
use crate::net::{Accepted, SpareFd, accept};
use crate::runtime::conns::{Conns, Door, Item};
use crate::types::{NodeId, Time};

/// How long accepting rests when the process is out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Connections taken in at one door in one turn.
const ACCEPTED_IN_A_TURN: usize = 64;

/// Descriptors of each server for disk, peers, pages and operators, and so many more for each server of the bank, to which its
/// gateway and its recoverer may connect.
const KEPT: u64 = 64;
const KEPT_FOR_EACH: u64 = 2;

/// How many connections of clients each of `servers` in this process can have of those `wanted`. The process takes all the
/// descriptors that it may have; a warning says so if they are too few.
pub fn affordable(wanted: u32, servers: usize, topology: &Topology) -> u32 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    // No limit at all is none that matters here.
    let limit = if raised.is_ok() { maximum } else { current }.unwrap_or(u64::MAX);
    let kept = KEPT + KEPT_FOR_EACH * topology.server_count() as u64;
    let fitting = fitting(wanted, limit / servers.max(1) as u64, kept);
    if fitting < wanted {
        log::warn!(
            "a server takes {fitting} connections of clients at most, not {wanted}: this process may have {limit} \
             descriptors, for {servers} servers, and each keeps {kept} for its disk, peers and pages; raise `ulimit -Hn`"
        );
    }
    fitting
}

fn fitting(wanted: u32, descriptors: u64, kept: u64) -> u32 {
    let left = descriptors.saturating_sub(kept).clamp(u64::from(CONNECTIONS_LEAST), u64::from(u32::MAX));
    wanted.min(left as u32)
}

struct Gate {
    token: Token,
    listener: TcpListener,
    door: Door,
    /// When to accept again, if somebody may be waiting.
    accept_at: Option<Time>,
}

/// The listeners of one server.
pub struct Gates {
    gates: Vec<Gate>,
    spare: SpareFd,
    /// Descriptors have run out, and that was said.
    short: bool,
}

impl Gates {
    /// Nobody is let in any more; who waits in front is refused by the system.
    pub fn close(&mut self) {
        self.gates.clear();
    }

    /// Listens, under one token for each door.
    ///
    /// # Errors
    ///
    /// There is no descriptor left, or the system does not let a listener be watched.
    pub fn open(
        registry: &Registry,
        tokens: impl IntoIterator<Item = Token>,
        doors: Vec<(TcpListener, Door)>,
        now: Time,
    ) -> io::Result<Gates> {
        let mut gates = Vec::new();
        for (token, (mut listener, door)) in tokens.into_iter().zip(doors) {
            registry.register(&mut listener, token, Interest::READABLE)?;
            gates.push(Gate { token, listener, door, accept_at: Some(now) });
        }
        Ok(Gates { gates, spare: SpareFd::reserve()?, short: false })
    }

    /// Somebody may be waiting at this listener.
    pub fn knock(&mut self, token: Token, now: Time) {
        self.gates.iter_mut().filter(|gate| gate.token == token).for_each(|gate| gate.accept_at = Some(now));
    }

    /// When accepting is to be tried again.
    pub fn due(&self) -> Option<Time> {
        self.gates.iter().filter_map(|gate| gate.accept_at).min()
    }

    /// Takes in whoever waits.
    pub fn accept(&mut self, me: NodeId, now: Time, conns: &mut Conns, received: &mut Vec<Item>) {
        for gate in self.gates.iter_mut().filter(|gate| gate.accept_at.is_some_and(|at| at <= now)) {
            gate.accept_at = gate.accept(now, conns, received).unwrap_or_else(|e| {
                if !std::mem::replace(&mut self.short, true) {
                    log::warn!("{me}: out of descriptors, whoever comes is turned away: {e}");
                }
                for _ in 0..ACCEPTED_IN_A_TURN {
                    match self.spare.turn_away(&gate.listener) {
                        Ok(Some(_)) => {}
                        Ok(None) => break,
                        Err(e) => {
                            log::debug!("{me}: could not turn a connection away: {e}");
                            break;
                        }
                    }
                }
                Some(now + ACCEPT_PAUSE)
            });
        }
        self.short &= self.gates.iter().any(|gate| gate.accept_at.is_some());
    }
}

impl Gate {
    /// Returns when to go on, if it could not take in all.
    ///
    /// # Errors
    ///
    /// There are no descriptors.
    fn accept(&self, now: Time, conns: &mut Conns, received: &mut Vec<Item>) -> io::Result<Option<Time>> {
        for _ in 0..ACCEPTED_IN_A_TURN {
            match accept(&self.listener) {
                Accepted::Stream(stream, remote) => {
                    conns.accepted(now, (stream, remote), self.door, received)
                }
                Accepted::Lost(e) => log::debug!("a connection was lost before it was accepted: {e}"),
                Accepted::Drained => return Ok(None),
                Accepted::Pause(e) => return Err(e),
            }
        }
        Ok(Some(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_for_disk_peers_and_pages_come_first() {
        assert_eq!(fitting(4096, 1 << 20, 82), 4096);
        assert_eq!(fitting(4096, 4178, 82), 4096);
        assert_eq!(fitting(4096, 1024, 82), 942);
        assert_eq!(fitting(4096, 50, 82), CONNECTIONS_LEAST, "some have to come in");
    }
}
