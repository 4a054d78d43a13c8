//! `cluster.toml`: one bank whose servers run as processes of their own.
//!
//! Every server and every client reads the same file. What is wrong with it is said in one line with the file and,
//! where there is one, the line.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::config::{Keep, Settings, Timeouts, Topology, limits};
use crate::net::Address;
use crate::runtime::conns::{Context, Endpoints};
use crate::types::NodeId;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    /// 32 hexadecimal digits, different for every bank.
    cluster_id: String,
    clusters: u16,
    servers_per_cluster: u16,
    accounts: u64,
    initial_balance: u64,
    #[serde(default)]
    allow_admin: bool,
    #[serde(default)]
    timeouts: TimeoutsTable,
    #[serde(default)]
    keep: KeepTable,
    #[serde(default)]
    limits: LimitsTable,
    servers: BTreeMap<String, toml::Value>,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TimeoutsTable {
    heartbeat_interval_ms: Option<u64>,
    election_timeout_ms: Option<u64>,
    in_doubt_timeout_ms: Option<u64>,
    read_timeout_ms: Option<u64>,
    unreachable_timeout_ms: Option<u64>,
    session_idle_timeout_ms: Option<u64>,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeepTable {
    snapshot_mib: Option<u32>,
    audit_mib: Option<u32>,
    audit_days: Option<u32>,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LimitsTable {
    connections: Option<u32>,
}

/// A configuration that was read and found sound.
#[derive(Clone, Debug)]
pub struct ClusterConfig {
    pub context: Context,
    pub settings: Settings,
    /// Whether operators may give orders (fail, recover, …) over the wire.
    pub allow_admin: bool,
}

/// A server's name in either spelling: `S4`, `n4`.
pub fn parse_server(name: &str, topology: &Topology) -> Result<NodeId, String> {
    let digits = name.strip_prefix(['S', 's', 'N', 'n']).unwrap_or("");
    let server = digits.parse().ok().map(NodeId).filter(|s| topology.contains_server(*s));
    server.ok_or_else(|| {
        format!("{name:?} is no server; accepted: S1 to S{} (or n1 to n{0})", topology.server_count())
    })
}

/// Reads and checks a configuration file.
pub fn load(path: &Path) -> Result<ClusterConfig, String> {
    let name = path.display();
    let text = std::fs::read_to_string(path).map_err(|e| format!("{name}: cannot be read: {e}"))?;
    check(path, &text)
}

/// Checks what stands in such a file, or will.
pub fn check(path: &Path, text: &str) -> Result<ClusterConfig, String> {
    let name = path.display();
    parse(text).map_err(|(line, what)| match line {
        Some(line) => format!("{name}:{line}: {what}"),
        None => format!("{name}: {what}"),
    })
}

/// One address for everything, or a table of addresses.
fn endpoints(entry: &toml::Value) -> Result<Endpoints, String> {
    let Some(table) = entry.as_table() else {
        let address = entry.as_str().ok_or("must be an address, or a table of addresses")?;
        return address.parse::<Address>().map(Endpoints::from);
    };
    if let Some(name) = table.keys().find(|name| !["peer", "client", "admin"].contains(&name.as_str())) {
        return Err(format!("unknown field `{name}`; there are `peer`, `client` and `admin`"));
    }
    let given = |name: &str| {
        let parse =
            |value: &toml::Value| value.as_str().ok_or("must be text".to_string())?.parse::<Address>();
        table.get(name).map(parse).transpose().map_err(|e| format!("{name}: {e}"))
    };
    let needed = |name: &str| given(name)?.ok_or_else(|| format!("{name} is missing"));
    Ok(Endpoints { peer: needed("peer")?, client: needed("client")?, admin: given("admin")? })
}

fn parse(text: &str) -> Result<ClusterConfig, (Option<usize>, String)> {
    let file: File = toml::from_str(text).map_err(|e| {
        let line = e.span().map(|span| text[..span.start.min(text.len())].matches('\n').count() + 1);
        (line, e.message().replace('\n', " "))
    })?;
    let whole = |what: String| (None, what);
    let topology = Topology {
        clusters: file.clusters,
        servers_per_cluster: file.servers_per_cluster,
        accounts: file.accounts,
        initial_balance: file.initial_balance,
    };
    topology.validate().map_err(whole)?;
    let usual = Timeouts::default();
    let given = file.timeouts;
    let timeouts = Timeouts {
        heartbeat_interval_ms: given.heartbeat_interval_ms.unwrap_or(usual.heartbeat_interval_ms),
        election_timeout_ms: given.election_timeout_ms.unwrap_or(usual.election_timeout_ms),
        in_doubt_timeout_ms: given.in_doubt_timeout_ms.unwrap_or(usual.in_doubt_timeout_ms),
        read_timeout_ms: given.read_timeout_ms.unwrap_or(usual.read_timeout_ms),
        unreachable_timeout_ms: given.unreachable_timeout_ms.unwrap_or(usual.unreachable_timeout_ms),
        session_idle_timeout_ms: given.session_idle_timeout_ms.unwrap_or(usual.session_idle_timeout_ms),
    };
    timeouts.validate().map_err(|e| whole(format!("[timeouts] {e}")))?;
    let usual = Keep::default();
    let keep = Keep {
        snapshot_mib: file.keep.snapshot_mib.unwrap_or(usual.snapshot_mib),
        audit_mib: file.keep.audit_mib.unwrap_or(usual.audit_mib),
        audit_days: file.keep.audit_days.unwrap_or(usual.audit_days),
    };
    keep.validate().map_err(|e| whole(format!("[keep] {e}")))?;
    let connections = file.limits.connections.unwrap_or(limits::CONNECTIONS);
    let (least, most) = (limits::CONNECTIONS_LEAST, limits::CONNECTIONS_MOST);
    if !(least..=most).contains(&connections) {
        return Err(whole(format!("[limits] connections {connections}: must be {least} to {most}")));
    }
    let cluster_id = u128::from_str_radix(&file.cluster_id, 16)
        .ok()
        .filter(|_| file.cluster_id.len() == 32)
        .ok_or_else(|| whole(format!("cluster_id {:?}: must be 32 hexadecimal digits", file.cluster_id)))?;

    let (mut addresses, mut taken) = (BTreeMap::new(), BTreeMap::new());
    for (name, entry) in file.servers {
        let server = parse_server(&name, &topology).map_err(|e| whole(format!("[servers] {e}")))?;
        let endpoints = endpoints(&entry).map_err(|e| whole(format!("[servers] {name}: {e}")))?;
        let client = (endpoints.client != endpoints.peer).then_some(&endpoints.client);
        for address in [Some(&endpoints.peer), client, endpoints.admin.as_ref()].into_iter().flatten() {
            if let Some(other) = taken.insert(address.clone(), server) {
                let who = if other == server { "has twice".into() } else { format!("and {other} have") };
                return Err(whole(format!("[servers] {name} {who} the same address {address}")));
            }
        }
        if addresses.insert(server, endpoints).is_some() {
            return Err(whole(format!("[servers] {server} is given twice")));
        }
    }
    if let Some(missing) = topology.servers().find(|s| !addresses.contains_key(s)) {
        return Err(whole(format!("[servers] has no address for {missing}")));
    }
    let context = Context { cluster_id, topology, timeouts, addresses };
    Ok(ClusterConfig {
        context,
        settings: Settings { timeouts, keep, connections, pinned: false },
        allow_admin: file.allow_admin,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "cluster_id = \"000102030405060708090a0b0c0d0e0f\"\nclusters = 1\n\
        servers_per_cluster = 3\naccounts = 10\ninitial_balance = 5\n[servers]\n\
        S1 = \"127.0.0.1:7001\"\nS2 = \"127.0.0.1:7002\"\nn3 = \"127.0.0.1:7003\"\n";

    #[test]
    fn a_sound_file_is_taken_as_it_stands() {
        let config = parse(GOOD).expect("a sound file");
        assert_eq!(config.context.topology.servers_per_cluster, 3);
        assert_eq!(config.context.addresses[&NodeId(3)].client.to_string(), "127.0.0.1:7003");
        assert_eq!(config.settings, Settings::default());
        assert!(!config.allow_admin);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (from, to, line, part) in [
            ("clusters = 1", "clusters = x", Some(2), ""),
            ("clusters = 1", "clusters = 1\nports = 3", Some(3), "unknown field"),
            ("S2 = \"127.0.0.1:7002\"\n", "", None, "no address for S2"),
            ("127.0.0.1:7002", "127.0.0.1:7001", None, "same address"),
            ("127.0.0.1:7002", "localhost", None, "[servers] S2: \"localhost\": must be an address"),
            ("\"127.0.0.1:7002\"", "7", None, "[servers] S2: must be an address, or"),
            ("\"127.0.0.1:7002\"", "{ peer = \"a:1\" }", None, "[servers] S2: client is missing"),
            ("\"127.0.0.1:7002\"", "{ peer = \"a:1\", client = 5 }", None, "S2: client: must be text"),
            ("\"127.0.0.1:7002\"", "{ peer = \"a:1\", port = 5 }", None, "unknown field `port`"),
            (
                "\"127.0.0.1:7002\"",
                "{ peer = \"a:1\", client = \"a:2\", admin = \"127.0.0.1:7001\" }",
                None,
                "S2 and S1 have the same address 127.0.0.1:7001",
            ),
            (
                "\"127.0.0.1:7002\"",
                "{ peer = \"a:1\", client = \"a:2\", admin = \"a:1\" }",
                None,
                "S2 has twice the same address a:1",
            ),
            ("S2", "S9", None, "is no server"),
            ("_cluster = 3", "_cluster = 2", None, "--servers 2"),
            ("0001020304", "00010203", None, "32 hexadecimal"),
            ("[servers]", "[timeouts]\nelection_timeout_ms = 3\n[servers]", None, "[timeouts] election"),
            ("[servers]", "[keep]\nsnapshot_mib = 0\n[servers]", None, "[keep] snapshot_mib 0: must be 1 to"),
            (
                "[servers]",
                "[keep]\naudit_days = 40000\n[servers]",
                None,
                "[keep] audit_days 40000: must be 0 to",
            ),
            (
                "[servers]",
                "[limits]\nconnections = 3\n[servers]",
                None,
                "[limits] connections 3: must be 16 to",
            ),
            ("[servers]", "[keep]\naudit_mib = -1\n[servers]", Some(7), "invalid value"),
            ("[servers]", "[timeouts]\nsession_idle_timeout_ms = 9\n[servers]", None, "or 0 (sessions never"),
        ] {
            let (at, what) = parse(&GOOD.replacen(from, to, 1)).expect_err("an unsound file");
            assert!(what.contains(part) && !what.contains('\n'), "{what}");
            assert_eq!(at, line, "{what}");
        }
    }
}
