//! Connections that this end opens, and opens again.

use std::net::SocketAddr;
use std::time::Duration;

use crate::codec::{Opener, kind};
use crate::config::limits;
use crate::net::{Connection, Limits};
use crate::runtime::conns::{Conns, Door, GREETING, Item, Role};
use crate::types::{NodeId, Time};

/// Pause before a connection that failed is tried again; it doubles with each failure up to the longest, and starts
/// over once a connection has lasted.
const REDIAL_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_REDIAL_PAUSE: Duration = Duration::from_millis(80);

/// After so many election time-outs, and so many messages to it, a peer that sends nothing is dialled anew. One that only has
/// nothing to say was sent few.
const SILENT_ELECTIONS: u32 = 8;
const SILENT_MESSAGES: u32 = 8;

#[derive(Default)]
pub(super) struct Dial {
    pub(super) token: Option<usize>,
    pub(super) retry_at: Time,
    /// Up to as many as matter for the pause.
    pub(super) failures: u32,
    /// Attempts since a connection lasted: which of the addresses of a name comes next.
    pub(super) attempts: usize,
    /// When the first message was sent that no message of this peer came after, and how many such there are.
    pub(super) unheard: Option<(Time, u32)>,
    /// Who wanted the connection, while the server's name is being looked up for it.
    pub(super) waits: Option<Opener>,
}

impl Dial {
    /// The address to try: all in turns, the first one first, which whoever knows names prefers.
    pub(super) fn next_of(&mut self, found: &[SocketAddr]) -> SocketAddr {
        let address = found[self.attempts % found.len()];
        self.attempts = self.attempts.wrapping_add(1);
        address
    }

    /// A message went to this peer.
    pub(super) fn sent(&mut self, now: Time) {
        self.unheard.get_or_insert((now, 0)).1 += 1;
    }

    /// Its connection is gone, which stood until `now` if it ever did.
    pub(super) fn lost(&mut self, now: Time, stood: bool) {
        self.token = None;
        // One that stood for longer than any pause was a good one.
        if stood && now.since(self.retry_at) > LONGEST_REDIAL_PAUSE {
            (self.failures, self.attempts) = (0, 0);
        }
    }
}

impl Conns {
    /// The connection to `server`, dialled if there is none and the last failure is not too fresh. Frames may be queued
    /// on it at once.
    pub fn dial(&mut self, now: Time, server: NodeId, opener: Opener) -> Option<usize> {
        let dial = self.dials.entry(server).or_default();
        if dial.token.is_some() || dial.retry_at > now {
            return dial.token;
        }
        let address = self.context.address(server, &opener)?;
        let Some(found) = self.resolver.resolve(address) else {
            dial.waits = Some(opener);
            return None;
        };
        dial.waits = None;
        dial.retry_at = now + (REDIAL_PAUSE * (1 << dial.failures)).min(LONGEST_REDIAL_PAUSE);
        dial.failures = (dial.failures + 1).min(8);
        let found = match found {
            Ok(found) => dial.next_of(&found),
            Err(e) => {
                log::debug!("cannot dial {server}: {e}");
                return None;
            }
        };
        let limits = match opener {
            Opener::Peer { .. } => {
                Limits { frame_bytes: GREETING.frame_bytes, send_bytes: limits::PEER_BUFFER_BYTES }
            }
            _ => Limits { frame_bytes: limits::CLIENT_FRAME_BYTES, send_bytes: limits::CLIENT_BUFFER_BYTES },
        };
        let connection = match Connection::connect(found, limits) {
            Ok(connection) => connection,
            Err(e) => {
                log::debug!("cannot dial {server} at {address} ({found}): {e}");
                return None;
            }
        };
        let token = self.insert(connection, Role::Dialled(server), found, Door::Anybody)?;
        let dial = self.dials.entry(server).or_default();
        (dial.token, dial.unheard) = (Some(token), None);
        let hello = self.context.hello(server, opener);
        self.send(token, kind::HELLO, &hello);
        Some(token)
    }

    /// Closes connections to those of these peers that were sent messages for several election time-outs and sent none: what lies
    /// between may have lost the connection without telling either end. They are dialled again.
    pub fn give_up_silent(&mut self, now: Time, peers: &[NodeId], received: &mut Vec<Item>) {
        let patience = SILENT_ELECTIONS * self.context.timeouts.election();
        let silent = |dial: &Dial| {
            let waited = |(since, sent): (Time, u32)| sent >= SILENT_MESSAGES && now.since(since) > patience;
            dial.token.filter(|_| dial.unheard.is_some_and(waited))
        };
        let silent: Vec<usize> = peers.iter().filter_map(|peer| silent(self.dials.get(peer)?)).collect();
        for token in silent {
            self.close(token, "its other end has been silent for long", received);
        }
    }

    /// Dials servers whose names have been looked up.
    pub fn dial_resolved(&mut self, now: Time) {
        let waiting = self.dials.iter().filter_map(|(server, dial)| Some((*server, dial.waits?)));
        for (server, opener) in waiting.collect::<Vec<_>>() {
            self.dial(now, server, opener);
        }
    }

    /// Whether a dialled connection to `server` stands.
    pub fn dialled(&self, server: NodeId) -> Option<usize> {
        self.dials.get(&server)?.token
    }

    /// When the next failed dial to one of `servers` may be tried again. Others are dialled when somebody asks for them.
    pub fn redial_due(&self, servers: &[NodeId]) -> Option<Time> {
        let dials = servers.iter().filter_map(|s| self.dials.get(s));
        dials.filter(|d| d.token.is_none() && d.waits.is_none()).map(|d| d.retry_at).min()
    }
}
