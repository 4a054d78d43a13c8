//! Readable conversations: each script in `tests/golden/` tells a small world what to do, and holds the log that follows.
//!
//! `UPDATE_GOLDENFILES=1 cargo test --test golden` writes the logs anew; read what changed before you keep it.
//!
//! Commands (times as `5ms` or `2s`; places are servers `S1`… and coordinators `K1`…):
//! `world` (`clusters=`, `servers=`, `accounts=`, `balance=`, `seed=`, `idle=` in milliseconds,
//! `reserve=` bytes), `client`, `transfer K A B X`,
//! `read K A`, `run TIME`, `until TEXT` (at most 10 s), `crash S`, `restart S`, `fail S`, `recover S`, `cut A B`,
//! `oneway A B`, `mend`, `hold A B`, `release`, `kill K`, `pause K`, `resume K`, `fuse S N` (the power goes before the N+1st
//! write or sync), `before-release S` (dies after the next sync, before anything leaves), `full S` and `space S` (its disk
//! gives no more space than it has given, or does again), `show KIND…` of `syncs probes heartbeats`, `status`, `balances`.
//! Parentheses silence a command.

use std::error::Error;
use std::path::Path;

use goldenscript::{Command, Context};
use shardpaxosbank::config::{Limits, Timeouts, Topology};
use shardpaxosbank::sim::{Harm, Options, Place, Trace, Weather, World};
use shardpaxosbank::storage::Retention;
use shardpaxosbank::txn::Op;
use shardpaxosbank::types::{AccountId, NodeId, Time, Transfer};

#[derive(Default)]
struct Runner {
    world: Option<World>,
    syncs: bool,
    probes: bool,
}

fn server(name: &str) -> Result<NodeId, Box<dyn Error>> {
    Ok(NodeId(name.strip_prefix('S').ok_or(format!("{name}: not a server"))?.parse()?))
}

fn client(name: &str) -> Result<u32, Box<dyn Error>> {
    Ok(name.strip_prefix('K').ok_or(format!("{name}: not a coordinator"))?.parse()?)
}

fn place(name: &str) -> Result<Place, Box<dyn Error>> {
    if name.starts_with('S') { Ok(Place::Server(server(name)?)) } else { Ok(Place::Client(client(name)?)) }
}

fn micros(text: &str) -> Result<u64, Box<dyn Error>> {
    match (text.strip_suffix("ms"), text.strip_suffix('s')) {
        (Some(ms), _) => Ok(ms.parse::<u64>()? * 1000),
        (None, Some(s)) => Ok(s.parse::<u64>()? * 1_000_000),
        (None, None) => Err(format!("{text}: not a time").into()),
    }
}

impl Runner {
    fn world(&mut self) -> Result<&mut World, Box<dyn Error>> {
        self.world.as_mut().ok_or("begin with `world`".into())
    }

    fn start(&mut self, command: &Command) -> Result<(), Box<dyn Error>> {
        let mut args = command.consume_args();
        let mut number = |key: &str, default: u64| -> Result<u64, Box<dyn Error>> {
            args.take_key(key).map_or(Ok(default), |text| Ok(text.parse()?))
        };
        let topology = Topology {
            clusters: number("clusters", 1)? as u16,
            servers_per_cluster: number("servers", 3)? as u16,
            accounts: number("accounts", 6)?,
            initial_balance: number("balance", 10)?,
        };
        let seed = number("seed", 1)?;
        let usual = Timeouts::default();
        let session_idle_timeout_ms = number("idle", usual.session_idle_timeout_ms)?;
        let limits = Limits { reserve_bytes: number("reserve", 8192)?, ..Limits::default() };
        args.reject_next()?;
        self.world = Some(World::new(Options {
            topology,
            timeouts: Timeouts { session_idle_timeout_ms, ..usual },
            limits,
            seed,
            weather: Weather::CALM,
            sync_us: (100, 100),
            segment_bytes: 65536,
            retention: Retention::default(),
            lines: false,
            odd_clocks: false,
            trace: Trace::Keep,
        }));
        Ok(())
    }

    fn status(&mut self) -> Result<String, Box<dyn Error>> {
        let world = self.world()?;
        let mut text = String::new();
        for server in world.servers.values() {
            let Some(running) = &server.running else {
                text += &format!("{}: down\n", server.id);
                continue;
            };
            let (replica, bank) = (running.shard.replica(), running.shard.bank());
            let role =
                if server.failed { "cut off".into() } else { format!("{:?}", replica.standing(world.now)) };
            text += &format!(
                "{}: {role}, promised {}, decided {}, position {}, locks {}\n",
                server.id,
                replica.promised(),
                replica.decided(),
                replica.position(),
                bank.holds().len()
            );
        }
        Ok(text)
    }

    fn balances(&mut self) -> Result<String, Box<dyn Error>> {
        let world = self.world()?;
        let topology = world.options.topology;
        let mut text = String::new();
        for id in topology.servers() {
            let accounts = topology.accounts_of(topology.shard_of_server(id));
            let all: Vec<String> = accounts
                .map(|a| world.balance(id, AccountId(a)).map_or("?".into(), |b| format!("{a}={b}")))
                .collect();
            text += &format!("{id}: {}\n", all.join(" "));
        }
        Ok(text)
    }

    fn until(&mut self, wanted: &str) -> Result<(), Box<dyn Error>> {
        let world = self.world()?;
        let limit = Time(world.now.0 + 10_000_000);
        let mut seen = world.log.len();
        loop {
            if world.log[seen..].iter().any(|line| line.contains(wanted)) {
                return Ok(());
            }
            seen = world.log.len();
            if !world.step() || world.now > limit {
                return Err(format!("nothing with {wanted:?} happens within 10 s").into());
            }
        }
    }
}

impl goldenscript::Runner for Runner {
    type Command = Command;

    fn run(&mut self, command: &Command, _: &Context) -> Result<String, Box<dyn Error>> {
        if command.name == "world" {
            self.start(command)?;
            return Ok(String::new());
        }
        let mut args = command.consume_args();
        let mut next = || args.next_pos().ok_or("an argument is missing");
        match command.name.as_str() {
            "status" => return self.status(),
            "balances" => return self.balances(),
            "show" => {
                while let Ok(kind) = next() {
                    match kind {
                        "syncs" => self.syncs = true,
                        "probes" => self.probes = true,
                        "heartbeats" => self.world()?.chatter = true,
                        other => return Err(format!("{other}: nothing to show").into()),
                    }
                }
            }
            "client" => _ = self.world()?.add_client(),
            "transfer" => {
                let id = client(next()?)?;
                let (from, to, amount) = (next()?.parse()?, next()?.parse()?, next()?.parse()?);
                let transfer = Transfer { from: AccountId(from), to: AccountId(to), amount };
                self.world()?.submit(id, Op::Transfer(transfer));
            }
            "read" => {
                let (id, account) = (client(next()?)?, next()?.parse()?);
                self.world()?.submit(id, Op::Read(AccountId(account)));
            }
            "run" => {
                let length = micros(next()?)?;
                let world = self.world()?;
                world.run_until(Time(world.now.0 + length));
            }
            "until" => {
                let wanted = next()?.to_string();
                self.until(&wanted)?;
            }
            "crash" => self.world()?.crash(server(next()?)?),
            "restart" => _ = self.world()?.start(server(next()?)?),
            "fail" => self.world()?.fail(server(next()?)?),
            "recover" => self.world()?.recover(server(next()?)?),
            "fuse" => {
                let (id, n) = (server(next()?)?, next()?.parse()?);
                self.world()?.arm(id, Harm::Fuse(n));
            }
            "full" => self.world()?.fill_disk(server(next()?)?, 0),
            "space" => self.world()?.free_disk(server(next()?)?),
            "before-release" => self.world()?.arm(server(next()?)?, Harm::BeforeRelease),
            "cut" | "oneway" | "hold" => {
                let (a, b) = (place(next()?)?, place(next()?)?);
                let network = &mut self.world()?.network;
                match command.name.as_str() {
                    "hold" => network.hold(a, b),
                    "oneway" => network.cut(a, b),
                    _ => {
                        network.cut(a, b);
                        network.cut(b, a);
                    }
                }
            }
            "mend" => self.world()?.network.mend(),
            "release" => self.world()?.release(),
            "kill" => self.world()?.kill_client(client(next()?)?),
            "pause" => self.world()?.pause_client(client(next()?)?, true),
            "resume" => self.world()?.pause_client(client(next()?)?, false),
            other => return Err(format!("{other}: no such command").into()),
        }
        args.reject_next()?;
        let (syncs, probes) = (self.syncs, self.probes);
        let quiet =
            |line: &String| (!syncs && line.ends_with(" synced")) || (!probes && line.contains("  Probe"));
        let lines = std::mem::take(&mut self.world()?.log);
        Ok(lines.into_iter().filter(|line| !quiet(line)).map(|line| line + "\n").collect())
    }
}

fn run_all(folder: &str) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(folder);
    let mut scripts: Vec<_> = std::fs::read_dir(folder)
        .expect("a folder of scripts")
        .map(|entry| entry.expect("a readable folder").path())
        .collect();
    scripts.sort();
    assert!(!scripts.is_empty());
    for script in scripts {
        println!("{}", script.display());
        goldenscript::run(&mut Runner::default(), &script).expect("a readable script");
    }
}

#[test]
fn paxos() {
    run_all("paxos");
}

#[test]
fn two_phase_commit() {
    run_all("commit");
}

#[test]
fn recovery() {
    run_all("recovery");
}
