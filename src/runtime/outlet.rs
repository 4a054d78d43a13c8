//! A pure coordinator on real connections: what a client's thread and a server's gateway have in common.

use std::collections::BTreeMap;

use crate::codec::{Opener, kind};
use crate::runtime::conns::{Conns, Item, Received, Role};
use crate::txn::{Answer, Coordinator, Input, Output};
use crate::types::{NodeId, Time};

/// A coordinator, and the connections that it dials.
pub struct Outlet {
    pub conns: Conns,
    pub coordinator: Coordinator,
}

impl Outlet {
    /// Hands on what came over one of its connections. Returns why a server turned this client away, if one did.
    pub fn take(&mut self, now: Time, item: Item, out: &mut Output) -> Option<String> {
        // It has no other connections than those that it dialled.
        let Role::Dialled(from) = item.role else { return None };
        let input = match item.received {
            Received::Established(server) => Input::Connected(server),
            Received::Closed => Input::Disconnected(from),
            Received::Response(response) => Input::Response { from, response },
            Received::Reject(why) => return Some(why),
            _ => return None,
        };
        self.coordinator.step(now, input, out);
        None
    }

    /// Ends a turn: sends and dials as the coordinator says. Answers may be left in `out`, from what could not be sent; then
    /// there is to be another turn.
    pub fn end_turn(&mut self, now: Time, out: &mut Output) -> Vec<Answer> {
        self.coordinator.step(now, Input::TurnEnd, out);
        let turn = std::mem::take(out);
        turn.events.iter().for_each(|event| log::debug!("coordinator: {event:?}"));
        for (to, request) in turn.send {
            let token = self.conns.dialled(to);
            if !token.is_some_and(|t| self.conns.send(t, kind::REQUEST, &request)) {
                // A full buffer is as good as a broken connection: the request is sent again elsewhere or later.
                self.coordinator.step(now, Input::Disconnected(to), out);
                if let Some(token) = token {
                    self.conns.close(token, "its buffer is full", &mut Vec::new());
                }
            }
        }
        for server in turn.connect {
            self.conns.dial(now, server, Opener::Client);
        }
        turn.answers
    }
}

/// Why servers turned this end away, as each last said. Who goes on trying is told the same each time.
#[derive(Default)]
pub struct Refusals(BTreeMap<NodeId, String>);

impl Refusals {
    /// Whether this was not said the last time.
    pub fn is_news(&mut self, from: NodeId, why: &str) -> bool {
        self.0.insert(from, why.to_string()).is_none_or(|before| before != why)
    }
}
