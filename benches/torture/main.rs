//! Nine real servers, each in a network namespace of its own, under load, and everything that networks, disks and operators
//! do to servers: `make torture MINUTES=10`.
//!
//! Every request of every client is noted with its times and its outcome. In the end the history must be strictly
//! serializable, every account must hold on every server exactly what the transfers told to be committed make of it, the
//! servers must be in equal states, and every id must be found as its client was told.
//!
//! Exit status: 0 nothing is wrong, 1 something is, 2 it could not run or was too slow to mean anything.

mod faults;
mod load;
mod net;
mod overload;
mod proxy;
mod servers;
mod verdict;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use hdrhistogram::Histogram;
use rustix::process::Signal;
use shardpaxosbank::types::ShardId;
use shardpaxosbank::workload::SplitMix64;

use faults::Tally;
use load::{CLIENTS, Load, Shared};
use servers::{CLUSTERS, PATIENCE, SERVERS, Servers};

const ACCOUNTS: u64 = 3000;
/// So many that requests seldom meet each other's locks.
const MANY_ACCOUNTS: u64 = 1_000_000;
const INITIAL_BALANCE: u64 = 100;
/// What is to be left while one server is throttled, in per cent.
const LEAST_LEFT: f64 = 80.0;
/// Milliseconds that half of the leaders' deaths, and 99 % of them, may leave a shard without a commit; of so many deaths.
const LEADER_BAR: (u64, u64) = (500, 1500);
const LEADERS: u64 = 20;
/// Transfers per second below which a run means nothing.
const LEAST_RATE: f64 = 500.0;
/// Requests per second of all clients together while harm is done.
const USUAL_RATE: u32 = 2000;
/// The same while a disk is to become full.
const FAST_RATE: u32 = 12_000;
/// A leader that is throttled has so long to find that it is.
const BEFORE_MEASURE: Duration = Duration::from_secs(2);
/// How long each throughput is measured, with one server throttled and without.
const MEASURE: Duration = Duration::from_secs(5);

#[derive(Parser)]
struct Args {
    /// How long harm is done.
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// What is done, and when; by default something new.
    #[arg(long)]
    seed: Option<u64>,
    /// No harm: only more requests than the servers can take.
    #[arg(long)]
    overload: bool,
    /// What `cargo bench` adds.
    #[arg(long, hide = true)]
    bench: bool,
}

/// What happened to a shard, from which it has to come back.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Blow {
    LeaderKilled,
    MajorityBack,
    ClusterRestarted,
    AllRestarted,
}

impl Blow {
    const ALL: [(Blow, &str); 4] = [
        (Blow::LeaderKilled, "a leader's kill -9"),
        (Blow::MajorityBack, "the end of a partition that left no majority"),
        (Blow::ClusterRestarted, "a restart of a whole cluster after kill -9"),
        (Blow::AllRestarted, "a restart of all servers after kill -9"),
    ];
}

/// Some time that nothing depends on.
pub fn pause(time: Duration) {
    let _ = crossbeam::channel::after(time).recv();
}

/// Between two requests of one client.
fn pace(rate: u32) -> Duration {
    Duration::from_secs(1) * CLIENTS / rate
}

fn main() -> ExitCode {
    let args = Args::parse();
    if let Err(why) = net::enter() {
        eprintln!("torture skipped: {why}");
        return ExitCode::from(2);
    }
    let seed = args.seed.unwrap_or_else(rand::random);
    let accounts = if args.overload { MANY_ACCOUNTS } else { ACCOUNTS };
    let done = in_place(accounts, |servers| {
        if args.overload {
            return overload::measure(servers, seed).map(|missed| told(&missed));
        }
        println!("seed {seed}, {} minutes, {CLIENTS} clients, {SERVERS} servers", args.minutes);
        attack(servers, seed, Duration::from_secs_f64(args.minutes * 60.0))
    });
    match done {
        Ok(code) => code,
        Err(why) => {
            println!("FAILED: {why}");
            ExitCode::from(1)
        }
    }
}

/// Founds a bank for as long as something is done to it.
fn in_place(
    accounts: u64,
    act: impl FnOnce(&mut Servers) -> Result<ExitCode, String>,
) -> Result<ExitCode, String> {
    let place = tempfile::Builder::new().prefix("bank-torture-").tempdir().map_err(|e| e.to_string())?;
    net::build(SERVERS)?;
    let mut servers = Servers::found(place.path(), accounts, INITIAL_BALANCE)?;
    let done = act(&mut servers);
    drop(servers);
    if !matches!(&done, Ok(code) if *code == ExitCode::SUCCESS) {
        let kept = place.keep();
        println!("what the servers said: {}/S*.log", kept.display());
    }
    done
}

fn attack(servers: &mut Servers, seed: u64, time: Duration) -> Result<ExitCode, String> {
    servers.heal()?;
    let load = Load::start(servers.topology(), seed);
    let shared = load.shared.clone();
    let mut rng = SplitMix64::new(seed);
    let mut missed = throttle(servers, &shared)?;
    shared.pace(pace(USUAL_RATE));
    let (mut tally, mut blows) = (Tally::default(), Vec::new());
    let (start, before) = (Instant::now(), shared.committed());
    while start.elapsed() < time {
        episode(servers, &shared, &mut rng, &mut tally, &mut blows)?;
        servers.heal()?;
    }
    let took = start.elapsed();
    let rate = (shared.committed() - before) as f64 / took.as_secs_f64();
    println!("{rate:.0} committed transfers/s over {:.0} s of harm", took.as_secs_f64());
    let stories = load.end();
    println!("{} requests were sent again", stories.iter().map(|story| story.repeated).sum::<u64>());
    servers.heal()?;
    tally.print();
    let wrong = verdict::judge(servers, &stories)?;
    for (blow, name) in Blow::ALL {
        let mut back: Histogram<u64> = Histogram::new(3).map_err(|e| e.to_string())?;
        for (_, shard, at) in blows.iter().filter(|(other, ..)| *other == blow) {
            let until = verdict::back_after(&stories, &servers.topology(), *shard, *at);
            let until = until.ok_or_else(|| format!("D{} never came back after {name}", shard + 1))?;
            back.record(until).map_err(|e| e.to_string())?;
        }
        if !back.is_empty() {
            let [p50, p90, p99] = [0.5, 0.9, 0.99].map(|q| back.value_at_quantile(q) / 1000);
            let (longest, count) = (back.max() / 1000, back.len());
            println!(
                "ms from {name} to the shard's next commit: p50 {p50}, p90 {p90}, p99 {p99}, longest {longest}, of {count}"
            );
            let late = p50 > LEADER_BAR.0 || p99 > LEADER_BAR.1;
            if blow == Blow::LeaderKilled && count >= LEADERS && late {
                missed.push(format!("p50 {} ms, p99 {} ms after {name}", LEADER_BAR.0, LEADER_BAR.1));
            }
        }
    }
    tally.back.sort_unstable();
    if let (Some(last), half) = (tally.back.last(), tally.back.len() / 2) {
        println!(
            "ms from the start of a killed server until everybody is well: p50 {}, longest {}, of {}",
            tally.back[half].as_millis(),
            last.as_millis(),
            tally.back.len()
        );
    }
    if !wrong.is_empty() {
        wrong.iter().for_each(|what| println!("WRONG: {what}"));
        return Ok(ExitCode::from(1));
    }
    if rate < LEAST_RATE {
        println!("void: fewer than {LEAST_RATE} transfers/s");
        return Ok(ExitCode::from(2));
    }
    let never = tally.missed(took);
    if !never.is_empty() {
        println!("void: some harm never met anybody: {never:?}");
        return Ok(ExitCode::from(2));
    }
    println!("nothing lost, nothing twice");
    Ok(told(&missed))
}

/// Says which bars were missed.
fn told(missed: &[String]) -> ExitCode {
    missed.iter().for_each(|bar| println!("MISSED: {bar}"));
    if missed.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(3) }
}

/// One thing that is done to the servers. When it is over nothing of it is left but what they have to make good.
fn episode(
    servers: &mut Servers,
    shared: &Shared,
    rng: &mut SplitMix64,
    tally: &mut Tally,
    blows: &mut Vec<(Blow, usize, u64)>,
) -> Result<(), String> {
    let shard = ShardId(1 + rng.below(u64::from(CLUSTERS)) as u16);
    let members = servers.members(shard);
    let mut blow = |blow| blows.push((blow, shard.index(), shared.now()));
    match rng.below(100) {
        0..25 => {
            let Some(leader) = servers.leader(shard) else { return Ok(()) };
            servers.kill(leader)?;
            blow(Blow::LeaderKilled);
            await_commits(shared, shard)?;
            servers.start(leader)
        }
        25..35 => {
            let cut: Vec<u16> = members.iter().copied().skip(rng.below(2) as usize).take(2).collect();
            cut.iter().try_for_each(|server| net::link(*server, false))?;
            pause(Duration::from_millis(500 + rng.below(3000)));
            cut.iter().try_for_each(|server| net::link(*server, true))?;
            blow(Blow::MajorityBack);
            await_commits(shared, shard)
        }
        35..43 => {
            members.iter().try_for_each(|server| servers.kill(*server))?;
            pause(Duration::from_millis(rng.below(2000)));
            members.iter().try_for_each(|server| servers.start(*server))?;
            blow(Blow::ClusterRestarted);
            await_commits(shared, shard)
        }
        43..47 => {
            (1..=SERVERS).try_for_each(|server| servers.kill(server))?;
            (1..=SERVERS).try_for_each(|server| servers.start(server))?;
            blow(Blow::AllRestarted);
            await_commits(shared, shard)
        }
        47..53 => {
            for server in 1..=SERVERS {
                servers.stop(server)?;
                servers.start(server)?;
                servers.heal()?;
            }
            Ok(())
        }
        53..57 => {
            // Only new requests fill a log up to where there is no more of it.
            shared.pace(pace(FAST_RATE));
            let victim = members[rng.below(3) as usize];
            let done = faults::fill_disk(servers, victim, tally);
            shared.pace(pace(USUAL_RATE));
            done
        }
        _ => faults::some_harm(servers, rng, tally),
    }
}

/// Waits until some transfers inside a shard have been committed from now on.
fn await_commits(shared: &Shared, shard: ShardId) -> Result<(), String> {
    let (since, before) = (Instant::now(), shared.committed_in(shard.index()));
    while shared.committed_in(shard.index()) < before + 20 {
        if since.elapsed() > PATIENCE {
            return Err(format!(
                "{shard} commits nothing for {} s, and nothing is done to it",
                PATIENCE.as_secs()
            ));
        }
        pause(Duration::from_millis(5));
    }
    Ok(())
}

/// Measures what is left when one server that follows, or one that led when that began, runs for a twentieth of the time only:
/// the part of what there is just before and just after, all in all. Returns the bars that were missed.
fn throttle(servers: &mut Servers, shared: &Shared) -> Result<Vec<String>, String> {
    let mut missed = Vec::new();
    let mut before = rate(shared, || pause(MEASURE));
    for leads in [false, true] {
        let mut shares = Vec::new();
        for shard in servers.topology().shards() {
            let leader = servers.leader(shard).ok_or("every shard is led")?;
            let other = servers.members(shard).into_iter().find(|s| *s != leader).expect("clusters of three");
            let victim = if leads { leader } else { other };
            let throttled = |time| {
                let until = Instant::now() + time;
                while Instant::now() < until {
                    let _ = servers.signal(victim, Signal::STOP);
                    pause(Duration::from_millis(57));
                    let _ = servers.signal(victim, Signal::CONT);
                    pause(Duration::from_millis(3));
                }
            };
            throttled(BEFORE_MEASURE);
            let left = rate(shared, || throttled(MEASURE));
            servers.heal()?;
            let after = rate(shared, || pause(MEASURE));
            shares.push(100.0 * left / ((before + after) / 2.0));
            println!(
                "{before:.0} transfers/s; {left:.0} while S{victim} of {shard} runs a twentieth of the time; {after:.0}"
            );
            before = after;
        }
        shares.sort_by(f64::total_cmp);
        let who = if leads { "leader" } else { "follower" };
        let median = shares[shares.len() / 2];
        println!("one throttled {who} leaves {median:.0} % (median of {})", shares.len());
        if median < LEAST_LEFT {
            missed.push(format!("{LEAST_LEFT} % with one throttled {who}"));
        }
    }
    Ok(missed)
}

fn rate(shared: &Shared, during: impl FnOnce()) -> f64 {
    let (start, before) = (Instant::now(), shared.committed());
    during();
    (shared.committed() - before) as f64 / start.elapsed().as_secs_f64()
}
