//! Who may talk to a server, as their first frame tells.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::codec::{Hello, Opener};
use crate::runtime::conns::{Context, Door, Role};
use crate::types::{NodeId, Time};

/// How long a server that falls silent keeps another one of the same name from being heard.
const TWIN_PATIENCE: Duration = Duration::from_secs(2);

/// Checks what does not depend on the protocol's state.
pub struct Doorman {
    me: NodeId,
    /// Whether operators may give orders over the wire.
    admin: bool,
    heard: BTreeMap<NodeId, Heard>,
}

/// The last that came under the name of a peer.
struct Heard {
    disk: u128,
    /// Which process it was, and on which connection. `None` if that is closed: nobody says more on it, and a process that
    /// is started again need not wait.
    from: Option<(u64, usize)>,
    at: Time,
}

impl Doorman {
    pub fn new(me: NodeId, admin: bool) -> Doorman {
        Doorman { me, admin, heard: BTreeMap::new() }
    }

    /// A peer that was let in said something.
    pub fn hears(&mut self, peer: NodeId, now: Time) {
        self.heard.entry(peer).and_modify(|heard| heard.at = now);
    }

    /// The connection of a peer that was let in is closed.
    pub fn loses(&mut self, peer: NodeId, token: usize) {
        self.heard.entry(peer).and_modify(|heard| _ = heard.from.take_if(|(_, on)| *on == token));
    }

    /// What somebody is to this server who came on this connection, through this door, and says so much.
    ///
    /// # Errors
    ///
    /// What does not fit, in words for whoever looks at either end.
    pub fn admit(
        &mut self,
        now: Time,
        context: &Context,
        (token, door): (usize, Option<Door>),
        hello: &Hello,
    ) -> Result<Role, String> {
        hello.check(context.cluster_id, (&context.topology, &context.timeouts), self.me)?;
        match (hello.opener, door) {
            (Opener::Peer { .. }, Some(Door::Clients)) => {
                Err("servers of its cluster are expected at its peer address".into())
            }
            (Opener::Client | Opener::Admin, Some(Door::Peers)) => {
                Err("clients and operators are expected at its client address".into())
            }
            (Opener::Peer { server, incarnation, process }, _) => {
                let recent = |heard: &&Heard| now.since(heard.at) < TWIN_PATIENCE;
                if let Some(heard) = self.heard.get(&server).filter(recent) {
                    if heard.disk != incarnation {
                        return Err(format!("another {server} runs, with another data directory"));
                    }
                    if heard.from.is_some_and(|(other, _)| other != process) {
                        return Err(format!("another {server} runs, with a copy of this data directory"));
                    }
                }
                let heard = Heard { disk: incarnation, from: Some((process, token)), at: now };
                self.heard.insert(server, heard);
                Ok(Role::Peer(server))
            }
            (Opener::Admin, _) if !self.admin => {
                Err("orders over the wire are not allowed here (allow_admin in the configuration)".into())
            }
            (Opener::Admin, _) => Ok(Role::Admin),
            (Opener::Client, _) => Ok(Role::Client),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Timeouts, Topology};

    const S1: NodeId = NodeId(1);
    const S2: NodeId = NodeId(2);

    fn ms(ms: u64) -> Time {
        Time(ms * 1000)
    }

    /// What S1's doorman says to an S2 with this disk, started as this process.
    fn comes(
        doorman: &mut Doorman,
        now: Time,
        token: usize,
        disk: u128,
        process: u64,
    ) -> Result<Role, String> {
        let (topology, timeouts) = (Topology::default(), Timeouts::default());
        let context = Context { cluster_id: 7, topology, timeouts, addresses: BTreeMap::new() };
        let hello = context.hello(S1, Opener::Peer { server: S2, incarnation: disk, process });
        doorman.admit(now, &context, (token, Some(Door::Anybody)), &hello)
    }

    /// Two with the same promises on their disks would promise different things to different servers.
    #[test]
    fn of_two_servers_of_one_name_one_is_heard() {
        let mut doorman = Doorman::new(S1, false);
        let known = Ok(Role::Peer(S2));
        assert_eq!(comes(&mut doorman, ms(0), 10, 5, 1), known);
        let refused = |said: Result<Role, String>, part: &str| said.is_err_and(|why| why.ends_with(part));
        assert!(refused(
            comes(&mut doorman, ms(1), 11, 6, 2),
            "another S2 runs, with another data directory"
        ));
        let copy = "another S2 runs, with a copy of this data directory";
        assert!(refused(comes(&mut doorman, ms(1), 11, 5, 2), copy));
        // As long as the first one says something.
        doorman.hears(S2, ms(1_500));
        assert!(refused(comes(&mut doorman, ms(3_499), 12, 5, 2), copy));
        // It may dial again, and its older connection close then.
        assert_eq!(comes(&mut doorman, ms(1_600), 13, 5, 1), known);
        doorman.loses(S2, 10);
        assert!(refused(comes(&mut doorman, ms(1_700), 14, 5, 2), copy));
        // One that was started again comes when the old one's connection is closed, or is heard no more.
        doorman.loses(S2, 13);
        assert_eq!(comes(&mut doorman, ms(1_701), 15, 5, 2), known);
        assert_eq!(comes(&mut doorman, ms(3_701), 16, 5, 3), known);
        assert_eq!(comes(&mut doorman, ms(5_701), 17, 6, 4), known);
    }
}
