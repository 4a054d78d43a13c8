//! Who may talk to a server, as their first frame tells.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::codec::{Hello, Opener};
use crate::runtime::conns::{Context, Door, Role};
use crate::types::{NodeId, Time};

/// How long a server that falls silent keeps another one of the same name, but another directory, from being heard.
const TWIN_PATIENCE: Duration = Duration::from_secs(2);

/// Checks what does not depend on the protocol's state.
pub struct Doorman {
    me: NodeId,
    /// Whether operators may give orders over the wire.
    admin: bool,
    /// The disk with which each peer was last heard, and when.
    heard: BTreeMap<NodeId, (u128, Time)>,
}

impl Doorman {
    pub fn new(me: NodeId, admin: bool) -> Doorman {
        Doorman { me, admin, heard: BTreeMap::new() }
    }

    /// A peer that was let in said something.
    pub fn hears(&mut self, peer: NodeId, now: Time) {
        self.heard.entry(peer).and_modify(|(_, at)| *at = now);
    }

    /// What somebody is to this server who came through this door and says so much.
    ///
    /// # Errors
    ///
    /// What does not fit, in words for whoever looks at either end.
    pub fn admit(
        &mut self,
        now: Time,
        context: &Context,
        door: Option<Door>,
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
            (Opener::Peer { server, incarnation }, _) => {
                let twin = |(disk, at): &(u128, Time)| *disk != incarnation && now.since(*at) < TWIN_PATIENCE;
                if self.heard.get(&server).is_some_and(twin) {
                    return Err(format!("another {server} runs, with another data directory"));
                }
                self.heard.insert(server, (incarnation, now));
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
