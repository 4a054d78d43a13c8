//! `bank client`: one request at servers that run elsewhere.

use std::path::Path;
use std::time::Duration;

use crossbeam::channel::RecvTimeoutError;

use crate::runtime::admin;
use crate::runtime::client::{Client, Reply};
use crate::runtime::config_file::{self, ClusterConfig};
use crate::runtime::order::{Order, Report};
use crate::runtime::session::Exit;
use crate::txn::{Op, Outcome};
use crate::types::{AccountId, NodeId, Transfer, TxnId};

/// Longer than any of the bank's own time-outs together.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a client wants.
pub enum Wish {
    /// With its id, if it has one.
    Transfer(Transfer, Option<TxnId>),
    /// Linearizable.
    Balance(AccountId),
    /// A session whose ids transfers may have.
    Session,
    /// What became of a transfer.
    Txn(TxnId),
    /// What each server of the account's cluster has applied, which may be old. It needs `allow_admin`.
    LocalBalances(AccountId),
}

/// Carries it out. Errors have been printed.
pub fn client(config: &Path, wish: &Wish) -> Exit {
    let done = config_file::load(config).map_err(|what| (Exit::Usage, what)).and_then(|config| match wish {
        Wish::Transfer(transfer, None) => ask(&config, Op::Transfer(*transfer)),
        Wish::Transfer(transfer, Some(id)) => ask(&config, Op::Named { id: *id, transfer: *transfer }),
        Wish::Balance(account) => ask(&config, Op::Read(*account)),
        Wish::Session => ask(&config, Op::Open),
        Wish::Txn(id) => ask(&config, Op::Lookup(*id)),
        Wish::LocalBalances(account) => local_balances(&config, *account),
    });
    match done {
        Ok(said) => {
            println!("{said}");
            Exit::Success
        }
        Err((exit, what)) => {
            eprintln!("{what}");
            exit
        }
    }
}

/// Gives it to a coordinator and waits for its outcome.
fn ask(config: &ClusterConfig, op: Op) -> Result<String, (Exit, String)> {
    let failed = |what: String| (Exit::Failure, what);
    let client = Client::start(config.context.clone(), config.settings.timeouts)
        .map_err(|e| failed(format!("error: no coordinator: {e}")))?;
    let moves = matches!(op, Op::Transfer(_) | Op::Named { .. });
    let reply = client.ask(op, PATIENCE).map_err(|e| {
        let what = match e {
            RecvTimeoutError::Timeout => format!("nothing happened for {} s", PATIENCE.as_secs()),
            RecvTimeoutError::Disconnected => "the coordinator has stopped; see the log above".into(),
        };
        match moves {
            true => (Exit::Unknown, format!("unknown: it may or may not take effect; {what}")),
            false => failed(format!("error: {what}")),
        }
    })?;
    if moves {
        client.settle();
    }
    // One server may turn this client away while the others serve it. That counts only if nothing came of it all.
    let Reply { outcome, refusal, .. } = reply;
    if let Some(why) = refusal {
        let exit = if outcome == Outcome::Unknown { Exit::Unknown } else { Exit::Usage };
        return Err((exit, format!("error: {why}")));
    }
    match outcome {
        Outcome::Committed => Ok("committed".into()),
        Outcome::Balance(balance) => Ok(balance.to_string()),
        Outcome::Opened(session) => Ok(session.to_string()),
        Outcome::Found(found) => Ok(found.to_string()),
        Outcome::Aborted(reason) => Err(failed(format!("aborted: {}", reason.name()))),
        Outcome::Closed => Err(failed("aborted: the session is closed; open another one".into())),
        Outcome::SessionFull => {
            Err(failed("aborted: the session has no ids as high as this one; open another one".into()))
        }
        Outcome::NoAnswer => Err((
            Exit::Unknown,
            "unknown: a shard has too few servers up to be asked; ask again, and do not send it under another id before"
                .into(),
        )),
        Outcome::Forgotten => Err((
            Exit::Unknown,
            "unknown: the session was never opened, or the bank has forgotten it and what became of its transfers".into(),
        )),
        Outcome::Unknown => {
            let advice = match op {
                Op::Named { id, .. } => format!("send it again under the id {id}, or ask with txn {id}"),
                _ => "look at the balances before you send it again".into(),
            };
            Err((Exit::Unknown, format!("unknown: it may or may not take effect; {advice}")))
        }
        Outcome::Confirmed(_) | Outcome::Settled => Err(failed("error: an answer to something else".into())),
    }
}

fn local_balances(config: &ClusterConfig, account: AccountId) -> Result<String, (Exit, String)> {
    let topology = &config.context.topology;
    let shard = topology.shard_of(account).ok_or((Exit::Failure, "aborted: unknown-account".to_string()))?;
    let servers: Vec<NodeId> = topology.servers_of(shard).collect();
    let mut lines = Vec::new();
    for server in servers {
        let line = match admin::ask(&config.context, server, &Order::Balances(vec![account])) {
            Ok(Report::Balances(balances)) => match balances.first() {
                Some(Some(balance)) => balance.to_string(),
                _ => "unknown".into(),
            },
            Ok(_) => "an answer to something else".into(),
            Err(e @ admin::AskError::Refused(_)) => return Err((Exit::Usage, format!("error: {e}"))),
            Err(e) => e.to_string(),
        };
        lines.push(format!("{server}  {line}"));
    }
    Ok(lines.join("\n"))
}
