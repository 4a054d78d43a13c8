//! Whether a run left the bank as it must be: equal states, all money there, and on each account what its transfers make of it.

use std::time::{Duration, Instant};

use crate::bench::drive::Finished;
use crate::config::Topology;
use crate::report::ServerState;
use crate::runtime::cluster::Fleet;
use crate::runtime::order::{Order, Report};
use crate::types::{AccountId, NodeId, ShardId, Slot};

/// Balances that are asked for in one order.
const AT_ONCE: u64 = 50_000;
/// How long servers may take to come to the same state when nothing is asked for any more.
const PATIENCE: Duration = Duration::from_secs(30);

/// The balances of all accounts, as one server of each shard that has applied all that is decided shows them.
///
/// # Errors
///
/// A server cannot be asked.
pub fn balances(fleet: &mut dyn Fleet, topology: &Topology) -> Result<Vec<u64>, String> {
    let mut all = Vec::with_capacity(topology.accounts as usize);
    for shard in topology.shards() {
        let up = topology.servers_of(shard).find(|server| fleet.state(*server) == ServerState::Live);
        let server = up.ok_or_else(|| format!("no server of {shard} is up"))?;
        all.extend(of_server(fleet, topology, shard, server)?);
    }
    Ok(all)
}

fn of_server(
    fleet: &mut dyn Fleet,
    topology: &Topology,
    shard: ShardId,
    server: NodeId,
) -> Result<Vec<u64>, String> {
    let accounts = topology.accounts_of(shard);
    let mut all = Vec::with_capacity((accounts.end() - accounts.start() + 1) as usize);
    let mut first = *accounts.start();
    while first <= *accounts.end() {
        let last = (first + AT_ONCE - 1).min(*accounts.end());
        match fleet.ask(server, Order::Balances((first..=last).map(AccountId).collect()))? {
            Report::Balances(balances) => {
                for (account, balance) in (first..).zip(balances) {
                    all.push(balance.ok_or_else(|| format!("{server} does not hold account {account}"))?);
                }
            }
            other => return Err(format!("{server} answers {other:?} when asked for balances")),
        }
        first = last + 1;
    }
    Ok(all)
}

/// Waits until the servers of each shard are in the same state, and returns how far each shard has applied its log.
///
/// # Errors
///
/// They do not come to that: it is said where they differ.
pub fn agreement(fleet: &mut dyn Fleet, topology: &Topology) -> Result<Vec<(ShardId, Slot)>, String> {
    let begun = Instant::now();
    let mut agreed = Vec::new();
    for shard in topology.shards() {
        loop {
            let mut states = Vec::new();
            for server in topology.servers_of(shard) {
                match fleet.ask(server, Order::Status)? {
                    Report::Status(status) => states.push((server, status.applied, status.digest)),
                    other => return Err(format!("{server} answers {other:?} when asked for its status")),
                }
            }
            let (_, applied, digest) = states[0];
            if states.iter().all(|(_, a, d)| (*a, *d) == (applied, digest)) {
                agreed.push((shard, applied));
                break;
            }
            if begun.elapsed() > PATIENCE {
                let states: Vec<String> = states
                    .iter()
                    .map(|(server, applied, digest)| format!("{server} slot {applied} digest {digest:016x}"))
                    .collect();
                return Err(format!("the servers of {shard} are in different states: {}", states.join(", ")));
            }
            // Whoever lags is asked to say when it has come so far.
            let furthest = states.iter().map(|(_, applied, _)| *applied).max().unwrap_or(applied);
            for (server, ..) in states {
                if let Report::Behind { applied } = fleet.ask(server, Order::AwaitApplied(furthest))? {
                    return Err(format!("{server} has no space for its log, and stands at slot {applied}"));
                }
            }
        }
    }
    Ok(agreed)
}

/// Holds the bank against what its clients know.
///
/// # Errors
///
/// What is off, with server and account.
pub fn check(
    fleet: &mut dyn Fleet,
    topology: &Topology,
    before: &[u64],
    finished: &Finished,
) -> Result<(), String> {
    let (sum, mut has) = (|balances: &[u64]| balances.iter().map(|b| u128::from(*b)).sum::<u128>(), 0);
    for (shard, applied) in agreement(fleet, topology)? {
        let decided =
            finished.decided.iter().find(|(s, _)| *s == shard).map_or(Slot::ZERO, |(_, slot)| *slot);
        if applied < decided {
            return Err(format!("{shard} has applied slot {applied}, and had decided {decided}"));
        }
        let mut held = 0;
        for server in topology.servers_of(shard) {
            let first = *topology.accounts_of(shard).start();
            let balances = of_server(fleet, topology, shard, server)?;
            // Their states are equal, so any of them will do.
            held = sum(&balances);
            for (account, balance) in (first..).zip(balances) {
                let index = account as usize - 1;
                let expected = before[index].checked_add_signed(finished.changes[index]);
                // Where a transfer may or may not have taken effect, its accounts are not known exactly.
                if finished.unresolved == 0 && expected != Some(balance) {
                    return Err(format!(
                        "account {account} holds {balance} on {server}; it had {} and its transfers make {}",
                        before[index], finished.changes[index]
                    ));
                }
            }
        }
        has += held;
    }
    let had = sum(before);
    if had != has {
        return Err(format!("the bank had {had} units and has {has}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::drive::Measured;
    use crate::config::Settings;
    use crate::runtime::cluster::{Cluster, DataDir};

    /// A check that finds nothing proves something only if it finds what is off.
    #[test]
    fn what_is_off_is_named() {
        let topology = Topology { clusters: 2, servers_per_cluster: 1, accounts: 10, initial_balance: 100 };
        let data = DataDir::temporary().expect("a directory");
        let mut bank = Cluster::start(topology, Settings::default(), data).expect("a bank");
        let before = balances(&mut bank, &topology).expect("balances");
        assert_eq!(before, [100; 10]);
        let finished = |changes: Vec<i64>, unresolved| Finished {
            measured: Measured::default(),
            changes,
            unresolved,
            decided: Vec::new(),
        };
        assert_eq!(check(&mut bank, &topology, &before, &finished(vec![0; 10], 0)), Ok(()));
        let mut changes = vec![0; 10];
        (changes[6], changes[2]) = (5, -5);
        let off = check(&mut bank, &topology, &before, &finished(changes.clone(), 0)).expect_err("it is off");
        assert!(off.starts_with("account 3 holds 100 on S1"), "{off}");
        // As long as its outcome is not known, a transfer may have happened or not; money is there in any case.
        assert_eq!(check(&mut bank, &topology, &before, &finished(changes, 1)), Ok(()));
        let mut more = before;
        more[0] += 1;
        let off = check(&mut bank, &topology, &more, &finished(vec![0; 10], 1)).expect_err("money is gone");
        assert_eq!(off, "the bank had 1001 units and has 1000");
    }
}
