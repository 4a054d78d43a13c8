//! Bytes ↔ messages. The only file that names bincode, so that the wire format is decided here and nowhere else.
//!
//! Fixed-width little-endian integers, a size limit on everything decoded, no trailing bytes. Bulk records inside a
//! [`crate::types::Value`] keep the layout of [`crate::bank::command`] and pass through here as opaque bytes.

use bincode::config::{Configuration, Fixint, Limit, LittleEndian};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::config::{Timeouts, Topology, limits};
use crate::types::NodeId;

/// First bytes of the first frame on every connection.
pub const MAGIC: u64 = u64::from_le_bytes(*b"SHPXBANK");
/// Version of the wire format; both ends must speak the same.
pub const VERSION: u32 = 8;

/// Frame kinds. A connection carries exactly one hello from its opener, then messages.
pub mod kind {
    pub const HELLO: u8 = 1;
    /// A [`crate::paxos::Message`].
    pub const PEER: u8 = 2;
    /// A [`crate::txn::message::Request`].
    pub const REQUEST: u8 = 3;
    /// A [`crate::txn::message::Response`].
    pub const RESPONSE: u8 = 4;
    /// The acceptor's reason for closing the connection, as text.
    pub const REJECT: u8 = 5;
    /// An order from an operator, and the report that answers it.
    pub const ADMIN: u8 = 6;
    pub const REPORT: u8 = 7;
}

/// Who opens a connection.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum Opener {
    /// A server of the same cluster; it only sends on this connection. `process` is drawn anew at each start.
    Peer { server: NodeId, incarnation: u128, process: u64 },
    /// A coordinator, or a server of another cluster that recovers a transaction.
    Client,
    /// An operator's tool.
    Admin,
}

/// The first frame. What does not fit is refused by name.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Hello {
    pub magic: u64,
    pub version: u32,
    pub cluster_id: u128,
    pub topology: Topology,
    /// Whoever waits otherwise than the others disturbs them, so all of a bank have the same.
    pub timeouts: Timeouts,
    /// The server that the opener means to talk to.
    pub to: NodeId,
    pub opener: Opener,
}

impl Hello {
    pub fn new(
        cluster_id: u128,
        (topology, timeouts): (Topology, Timeouts),
        to: NodeId,
        opener: Opener,
    ) -> Hello {
        Hello { magic: MAGIC, version: VERSION, cluster_id, topology, timeouts, to, opener }
    }

    /// Whether this hello is meant for `me`; if not, what does not fit.
    pub fn check(
        &self,
        cluster_id: u128,
        (topology, timeouts): (&Topology, &Timeouts),
        me: NodeId,
    ) -> Result<(), String> {
        if self.magic != MAGIC {
            return Err("it does not speak this protocol".into());
        }
        if self.version != VERSION {
            return Err(format!("it speaks wire version {}, this is {VERSION}", self.version));
        }
        if self.cluster_id != cluster_id {
            return Err(format!(
                "it belongs to the bank {:032x}, this is {cluster_id:032x}",
                self.cluster_id
            ));
        }
        if self.topology != *topology {
            return Err(format!("its topology is {:?}, here it is {topology:?}", self.topology));
        }
        if let Some((name, theirs, ours)) = self.timeouts.difference(timeouts) {
            return Err(format!(
                "its configuration differs: [timeouts] {name} is {theirs}, here it is {ours}"
            ));
        }
        if self.to != me {
            return Err(format!("it looks for {}, this is {me}", self.to));
        }
        match self.opener {
            Opener::Peer { server, .. }
                if !topology.contains_server(server)
                    || server == me
                    || topology.shard_of_server(server) != topology.shard_of_server(me) =>
            {
                Err(format!("{server} is no peer of {me}"))
            }
            _ => Ok(()),
        }
    }
}

fn format() -> Configuration<LittleEndian, Fixint, Limit<{ limits::PEER_FRAME_BYTES }>> {
    bincode::config::standard()
        .with_little_endian()
        .with_fixed_int_encoding()
        .with_limit::<{ limits::PEER_FRAME_BYTES }>()
}

/// Appends a message to `out`.
pub fn encode<T: Serialize>(message: &T, out: &mut Vec<u8>) {
    bincode::serde::encode_into_std_write(message, out, format())
        .expect("own messages are plain data, and a Vec takes any number of bytes");
}

/// Reads a message that fills `bytes` exactly.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    let (message, read) = bincode::serde::decode_from_slice(bytes, format()).map_err(|e| e.to_string())?;
    if read != bytes.len() {
        return Err(format!("{} bytes follow the message", bytes.len() - read));
    }
    Ok(message)
}
