//! `bank client`: one transfer, or one balance, at servers that run elsewhere.

use std::path::Path;
use std::time::Duration;

use crossbeam::channel::RecvTimeoutError;

use crate::runtime::admin;
use crate::runtime::client::{Client, Command, News};
use crate::runtime::config_file::{self, ClusterConfig};
use crate::runtime::order::{Order, Report};
use crate::runtime::session::Exit;
use crate::txn::{Op, Outcome};
use crate::types::{AccountId, NodeId, Transfer};

/// Longer than any of the bank's own time-outs together.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a client wants.
pub enum Wish {
    Transfer(Transfer),
    /// Linearizable.
    Balance(AccountId),
    /// What each server of the account's cluster has applied, which may be old. It needs `allow_admin`.
    LocalBalances(AccountId),
}

/// Carries it out. Errors have been printed.
pub fn client(config: &Path, wish: &Wish) -> Exit {
    let done = config_file::load(config).map_err(|what| (Exit::Usage, what)).and_then(|config| match wish {
        Wish::Transfer(transfer) => ask(&config, Op::Transfer(*transfer)),
        Wish::Balance(account) => ask(&config, Op::Read(*account)),
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
    client.send(Command::Op(op));
    loop {
        match client.news.recv_timeout(PATIENCE) {
            Ok(News::Op(Outcome::Committed)) => return Ok("committed".into()),
            Ok(News::Op(Outcome::Balance(balance))) => return Ok(balance.to_string()),
            Ok(News::Op(Outcome::Aborted(reason))) => {
                return Err(failed(format!("aborted: {}", reason.name())));
            }
            Ok(News::Op(Outcome::Unknown)) => {
                let what =
                    "unknown: it may or may not take effect; look at the balances before you send it again";
                return Err((Exit::Unknown, what.into()));
            }
            Ok(News::TurnedAway(why)) => return Err((Exit::Usage, format!("error: {why}"))),
            Ok(_) => {}
            Err(RecvTimeoutError::Timeout) => {
                return Err(failed(format!("error: nothing happened for {} s", PATIENCE.as_secs())));
            }
            Err(RecvTimeoutError::Disconnected) => {
                return Err(failed("error: the coordinator has stopped; see the log above".into()));
            }
        }
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
