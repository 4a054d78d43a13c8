//! What each page says. Everything is told from the status that the server's loop published last, and from how old that is.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use prometheus_client::encoding::prometheus_text::CONTENT_TYPE as METRICS;
use serde_json::{Value, json};

use crate::config::Topology;
use crate::report::Role;
use crate::runtime::clock::{Clock, uptime};
use crate::runtime::http::exposition;
use crate::runtime::status::Status;
use crate::types::{NodeId, ShardId};

pub(super) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// A loop turns at least once a second; one that has not for this long stands still.
const STALLED: Duration = Duration::from_secs(5);

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";

/// Which server the pages are about.
pub struct Pages {
    server: NodeId,
    shard: ShardId,
    status: Arc<Mutex<Status>>,
    clock: Clock,
    /// Seconds since 1970.
    started: f64,
}

/// One response.
pub(super) struct Answer {
    pub code: u16,
    pub content_type: &'static str,
    pub body: String,
}

impl Pages {
    /// `status` is what the server's loop publishes, and `clock` is the one by which it does. Until that loop has turned once,
    /// it counts as one that stands still since the clock started: what comes before, such as reading a long log, may take
    /// longer than a loop may stand.
    pub fn new(status: Arc<Mutex<Status>>, topology: &Topology, clock: Clock) -> Pages {
        let server = status.lock().server;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let started = now.saturating_sub(uptime(clock.now())).as_secs_f64();
        Pages { server, shard: topology.shard_of_server(server), status, clock, started }
    }

    pub(super) fn server(&self) -> NodeId {
        self.server
    }

    pub(super) fn answer(&self, method: &str, target: &str) -> Answer {
        let path = target.split('?').next().unwrap_or_default();
        if !matches!(path, "/metrics" | "/livez" | "/readyz" | "/status") {
            return Answer::new(404, "no such page; there are /metrics, /livez, /readyz and /status");
        }
        if !matches!(method, "GET" | "HEAD") {
            return Answer::new(405, "these pages can only be read: GET or HEAD");
        }
        let status = self.status.lock().brief();
        // Afterwards: what was published cannot be younger than this.
        let now = uptime(self.clock.now());
        match path {
            "/livez" => Answer::verdict(liveness(&status, now)),
            "/readyz" => Answer::verdict(readiness(&status, now)),
            "/status" => Answer {
                code: 200,
                content_type: JSON,
                body: format!("{:#}\n", describe(&status, self.shard, now)),
            },
            _ => {
                let body = exposition::page(status, self.shard, now, self.started);
                Answer { code: 200, content_type: METRICS, body }
            }
        }
    }
}

impl Answer {
    /// One line of text.
    pub fn new(code: u16, line: &str) -> Answer {
        // An error of the system may have several.
        Answer { code, content_type: TEXT, body: line.replace(['\r', '\n'], " ") + "\n" }
    }

    fn verdict(verdict: Result<String, String>) -> Answer {
        match verdict {
            Ok(how) => Answer::new(200, &format!("ok: {how}")),
            Err(why) => Answer::new(503, &why),
        }
    }
}

/// Whether the server's loop runs; how, or why not.
pub(super) fn liveness(status: &Status, now: Duration) -> Result<String, String> {
    if let Some(why) = &status.stopped {
        return Err(format!("stopped: {why}"));
    }
    let age = now.saturating_sub(status.uptime);
    match age < STALLED {
        true => Ok(format!("the loop turned {} ms ago", age.as_millis())),
        false => Err(format!("stalled: the loop has not turned for {} s", age.as_secs())),
    }
}

/// Whether the server takes its part in a cluster that is led; how, or why not, beginning with the name of the reason.
pub(super) fn readiness(status: &Status, now: Duration) -> Result<String, String> {
    liveness(status, now)?;
    let led = now < status.led_until;
    let why = match status.role {
        _ if status.leaving => "leaving: it is about to stop",
        _ if status.failed => "failed: it is cut off, by an order",
        Role::Learner => "learner: it has a new disk, and votes when the others have let it in",
        _ if status.repairing => "repairing: damage took votes, and those it has do not all count",
        _ if status.disputed => "disputed: others have another state, and it is not known who is right",
        Role::NoQuorum => "no-quorum: no majority of its cluster answers",
        Role::Searching => "no-leader: it knows nobody who leads",
        Role::Leader if !led => "unconfirmed: it leads, and no majority has confirmed that lately",
        Role::Follower if !led => "leader-silent: its leader was not heard for an election time-out",
        Role::Leader => return Ok(format!("leads in ballot {}", status.ballot)),
        Role::Follower => {
            let leader = status.leader.map_or("its leader".to_string(), |leader| leader.to_string());
            return Ok(format!("follows {leader}"));
        }
    };
    Err(why.to_string())
}

/// The server in JSON, as it is when its process has been running for `now`.
pub fn describe(status: &Status, shard: ShardId, now: Duration) -> Value {
    json!({
        "server": status.server.to_string(),
        "shard": shard.to_string(),
        "version": VERSION,
        "uptime_s": now.as_millis() as f64 / 1e3,
        "turned_ms_ago": now.saturating_sub(status.uptime).as_millis() as u64,
        "stopped": status.stopped,
        "failed": status.failed,
        "role": name(status.role),
        "ballot": status.ballot.to_string(),
        "leader": status.leader.map(|leader| leader.to_string()),
        "decided": status.decided.0,
        "applied": status.applied.0,
        "lag": status.lag,
        "digest": format!("{:016x}", status.digest),
        "disputed": status.disputed,
        "in_doubt": status.in_doubt,
        "queued": status.queued,
        "in_flight": status.in_flight,
        "disk": { "log_bytes": status.log_bytes, "room_bytes": status.room },
        "repairing": status.repairing,
        "damage_found": status.metrics.damage_found,
        "damage": status.metrics.damage,
    })
}

/// A role as one word.
pub(super) fn name(role: Role) -> &'static str {
    match role {
        Role::Searching => "searching",
        Role::Follower => "follower",
        Role::Leader => "leader",
        Role::NoQuorum => "no-quorum",
        Role::Learner => "learner",
    }
}
