//! What the clients were told, against itself and against what the servers hold in the end.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::time::Duration;

use shardpaxosbank::config::Topology;
use shardpaxosbank::history::{self, Call, Failure, Operation, Reply};
use shardpaxosbank::types::AccountId;

use crate::load::Story;
use crate::servers::{SERVERS, Servers};

/// Ids that are looked up in the end.
const SAMPLE: usize = 3000;

/// Everything that is wrong; empty if the bank kept its word.
pub fn judge(servers: &mut Servers, stories: &[Story]) -> Result<Vec<String>, String> {
    let topology = servers.topology();
    let mut wrong: Vec<String> = stories.iter().flat_map(|story| story.complaints.clone()).collect();
    let all: Vec<Operation> = stories.iter().flat_map(|story| story.operations.iter().copied()).collect();
    let is_transfer = |o: &&Operation| matches!(o.call, Call::Transfer(_));
    let open = all.iter().filter(is_transfer).filter(|o| o.replied.is_none()).count();
    if open > 0 {
        wrong.push(format!("{open} transfers have no outcome, although everything is well again"));
    }
    // A read that was refused says nothing.
    let told: Vec<Operation> =
        all.iter().filter(|o| o.replied.is_some() || is_transfer(o)).copied().collect();
    match history::check(&topology, &told) {
        Ok(report) => println!(
            "history: strictly serializable: {} operations, {} committed, {} observations of balances, largest part {}",
            report.operations, report.committed, report.observations, report.largest_part
        ),
        Err(failure @ Failure::Violation(_)) => wrong.push(format!("not strictly serializable: {failure}")),
        Err(failure @ Failure::Undecided(_)) => wrong.push(format!("history not judged: {failure}")),
    }
    if open == 0 {
        wrong.extend(compare(servers, &expected(&topology, &all))?);
    }
    wrong.extend(states(servers)?);
    wrong.extend(look_up(stories)?);
    Ok(wrong)
}

/// Exactly once: what every account must hold after the transfers that were told to be committed.
fn expected(topology: &Topology, all: &[Operation]) -> BTreeMap<u64, i64> {
    let opened = |account| (account, topology.initial_balance as i64);
    let mut balances: BTreeMap<u64, i64> = (1..=topology.accounts).map(opened).collect();
    for operation in all {
        if let (Call::Transfer(t), Some((_, Reply::Committed))) = (operation.call, operation.replied) {
            *balances.entry(t.from.0).or_default() -= t.amount;
            *balances.entry(t.to.0).or_default() += t.amount;
        }
    }
    balances
}

/// The balances on each server that holds them, and the money of all.
fn compare(servers: &Servers, expected: &BTreeMap<u64, i64>) -> Result<Vec<String>, String> {
    let topology = servers.topology();
    let mut wrong = Vec::new();
    for server in 1..=SERVERS {
        let range = topology.accounts_of(servers.shard_of(server));
        let asks: Vec<String> = range.clone().map(|account| format!("BALANCE {account} LOCAL")).collect();
        for (account, reply) in range.zip(ask(server, &asks)?) {
            let balance = reply.strip_prefix(':').and_then(|n| n.parse::<i64>().ok());
            if balance != expected.get(&account).copied() {
                wrong.push(format!(
                    "account {account} holds {reply} on S{server}, not {:?}",
                    expected.get(&account)
                ));
            }
        }
    }
    let money: i64 = expected.values().sum();
    let opened = (topology.accounts * topology.initial_balance) as i64;
    if money != opened || expected.values().any(|balance| *balance < 0) {
        wrong.push(format!("{money} units in all, not {opened}, or somebody has less than nothing"));
    }
    wrong.truncate(20);
    Ok(wrong)
}

/// Equal digests at equal slots, and nothing in doubt.
fn states(servers: &mut Servers) -> Result<Vec<String>, String> {
    let topology = servers.topology();
    let mut wrong = Vec::new();
    for shard in topology.shards() {
        let mut last = Vec::new();
        let agree = (0..200).any(|_| {
            let statuses: Vec<_> =
                servers.members(shard).into_iter().filter_map(|s| servers.status(s)).collect();
            last = statuses.iter().map(|s| (s.server, s.applied, s.digest, s.in_doubt)).collect();
            let first = last.first().copied();
            let agree = last.len() == servers.members(shard).len()
                && last.iter().all(|s| first.is_some_and(|f| (s.1, s.2, s.3) == (f.1, f.2, 0)));
            if !agree {
                crate::pause(Duration::from_millis(100));
            }
            agree
        });
        if !agree {
            wrong.push(format!("{shard}: servers differ or have something in doubt: {last:?}"));
        }
    }
    Ok(wrong)
}

/// Any server tells what became of an id, and always the same as then.
fn look_up(stories: &[Story]) -> Result<Vec<String>, String> {
    let mut wrong = Vec::new();
    for (i, story) in stories.iter().enumerate() {
        let told = story.ids.iter().zip(&story.operations);
        let last: Vec<_> = told
            .rev()
            .filter_map(|(id, o)| Some((id.clone()?, o.replied?.1)))
            .take(SAMPLE / stories.len())
            .collect();
        let asks: Vec<String> = last.iter().map(|(id, _)| format!("TXN {id}")).collect();
        let server = (i as u16) % SERVERS + 1;
        for ((id, reply), found) in last.iter().zip(ask(server, &asks)?) {
            let agrees = match reply {
                Reply::Committed => found == "+committed",
                _ => found.starts_with("+aborted") || found == "+never seen",
            };
            if !agrees {
                wrong.push(format!("{id} was {reply:?}, and S{server} finds it {found:?}"));
            }
        }
    }
    wrong.truncate(20);
    Ok(wrong)
}

/// Sends requests to one server, some hundred at a time, and reads the replies, each a line.
fn ask(server: u16, requests: &[String]) -> Result<Vec<String>, String> {
    let address = Servers::client_address(server);
    let name = |e: std::io::Error| format!("S{server} at {address}: {e}");
    let stream = TcpStream::connect(&address).map_err(name)?;
    stream.set_read_timeout(Some(Duration::from_secs(30))).map_err(name)?;
    let mut stream = BufReader::new(stream);
    let mut replies = Vec::new();
    for some in requests.chunks(100) {
        let text: String = some.iter().map(|request| format!("{request}\r\n")).collect();
        stream.get_mut().write_all(text.as_bytes()).map_err(name)?;
        for _ in some {
            let mut line = String::new();
            stream.read_line(&mut line).map_err(name)?;
            replies.push(line.trim_end().to_string());
        }
    }
    Ok(replies)
}

/// Microseconds from a moment until a transfer inside a shard that was asked for since is committed.
pub fn back_after(stories: &[Story], topology: &Topology, shard: usize, at: u64) -> Option<u64> {
    let of_shard = |o: &Operation| match o.call {
        Call::Transfer(t) => {
            let index = |account: AccountId| topology.shard_of(account).map(|s| s.index());
            index(t.from) == Some(shard) && index(t.to) == Some(shard)
        }
        Call::Read(_) => false,
    };
    let back = |o: &Operation| match o.replied {
        Some((when, Reply::Committed)) if o.invoked >= at && of_shard(o) => Some(when - at),
        _ => None,
    };
    stories.iter().flat_map(|story| story.operations.iter().filter_map(back)).min()
}
