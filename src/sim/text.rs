//! Messages as a reader of a log wants to see them: short, and with the transactions inside.

use crate::bank::command::{self, Command, Range};
use crate::bank::{BlockResult, Status};
use crate::paxos::Message;
use crate::txn::message::{Refusal, Request, Response};
use crate::types::{Slot, TxnId, Value, Vote};

/// The blocks of a slot's value.
pub fn value(value: &Value) -> String {
    if value.is_empty() {
        return "no-op".into();
    }
    let blocks = command::blocks(&value.0).map(|b| b.map_or_else(|e| format!("malformed ({e})"), block));
    blocks.collect::<Vec<_>>().join(", ")
}

fn first(range: Range) -> TxnId {
    TxnId { session: range.session, seq: range.first }
}

fn block(command: Command<'_>) -> String {
    let list = |range, records: &[command::TransferRecord]| {
        let all: Vec<String> = records.iter().map(|r| r.get().to_string()).collect();
        format!("{} {}", first(range), all.join(" "))
    };
    match command {
        Command::Open { named: false } => "open".into(),
        Command::Open { named: true } => "open for names".into(),
        Command::Touch { session } => format!("touch {session}"),
        Command::Mark { session, mark } => format!("mark {session}:{mark}"),
        Command::Transfers { range, records, .. } => format!("transfer {}", list(range, records)),
        Command::Prepare { range, records, .. } => format!("prepare {}", list(range, records)),
        Command::Outcome { range, commits, .. } => {
            let word = |i| if command::bit(commits, i) { "commit" } else { "abort" };
            let words: Vec<&str> = (0..range.count as usize).map(word).collect();
            format!("outcome {} {}", first(range), words.join(" "))
        }
        Command::Fence { range, .. } if range.count == 1 => format!("fence {}", first(range)),
        Command::Fence { range, .. } => format!("fence {} to {}", first(range), range.seqs().end - 1),
        Command::Close { session } => format!("close {session}"),
        Command::Rejoin { server, incarnation, ballot } => {
            format!("rejoin {server} disk {:x} ballot {ballot}", incarnation.0)
        }
        Command::Expire { session, live: [] } => format!("expire {session}"),
        Command::Expire { session, live } => {
            let live: Vec<String> = live.iter().map(|n| n.get().to_string()).collect();
            format!("expire {session}, live are {}", live.join(" "))
        }
    }
}

fn slots(first: Slot, count: usize) -> String {
    match count {
        0 => "nothing".into(),
        1 => format!("slot {first}"),
        _ => format!("slots {first}–{}", first.0 + count as u64 - 1),
    }
}

fn entries<'a>(values: impl Iterator<Item = &'a Value>) -> String {
    values.map(|v| format!("[{}]", value(v))).collect::<Vec<_>>().join(" ")
}

pub fn message(message: &Message) -> String {
    match message {
        Message::PreVote(_) => "PreVote".into(),
        Message::PreVoteReply(m) => {
            format!("PreVoteReply {}, promised {}", if m.granted { "granted" } else { "refused" }, m.promised)
        }
        Message::Prepare(m) => format!("Prepare {} decided={}", m.ballot, m.decided),
        Message::Promise(m) => {
            let mut text = format!("Promise {} decided={}", m.ballot, m.decided);
            for (slot, ballot, v) in m.cast() {
                text += &format!(" vote {slot} in {ballot} [{}]", value(v));
            }
            if let Some(loss) = &m.loss {
                let lost: Vec<_> =
                    loss.votes.iter().filter(|(_, vote)| matches!(vote, Vote::Lost(_))).collect();
                text += &format!(" known={} lost {lost:?} hidden to {}", loss.known, loss.hidden);
            }
            text
        }
        Message::Refuse(m) => format!("Refuse {}, promised {}", m.ballot, m.promised),
        Message::Accept(m) => format!(
            "Accept {} {} {} decided={}",
            m.ballot,
            slots(m.first, m.values.len()),
            entries(m.values.iter()),
            m.decided
        ),
        Message::Accepted(m) => format!("Accepted {} up to {}", m.ballot, m.position),
        Message::Heartbeat(m) => format!("Heartbeat {} round {} decided={}", m.ballot, m.round, m.decided),
        Message::HeartbeatReply(m) => {
            format!("HeartbeatReply {} round {} position={}", m.ballot, m.round, m.position)
        }
        Message::Learner(m) => {
            format!("Learner {} disk {:x} decided={}", m.ballot, m.incarnation.0, m.decided)
        }
        Message::Resign { ballot } => format!("Resign {ballot}"),
        Message::Fetch(m) => format!("Fetch from {}", m.from),
        Message::Snapshot(cut) => format!("Snapshot(slot {}, {} pieces)", cut.slot, cut.pieces()),
        Message::GetPiece { slot, n } => format!("GetPiece({slot}, {n})"),
        Message::Piece { slot, n, bytes } => format!("Piece({slot}, {n}, {bytes:?})"),
        Message::Entries(m) => format!(
            "Entries {} {}",
            slots(m.first, m.entries.len()),
            entries(m.entries.iter().map(|(_, value)| value))
        ),
        Message::Digests(m) => {
            let reports: Vec<String> = m.reports.iter().map(|(id, d)| format!(" {id} {d:016x}")).collect();
            format!("Digests slot {}{}", m.slot, reports.concat())
        }
    }
}

/// Whether this is said so often that a log is easier to read without it.
pub fn is_chatter(message: &Message) -> bool {
    matches!(message, Message::Heartbeat(_) | Message::HeartbeatReply(_))
}

pub fn request(request: &Request) -> String {
    match request {
        Request::Submit { blocks, .. } => format!("Submit [{}]", value(blocks)),
        Request::Read { account, local, .. } => {
            format!("Read {account}{}", if *local { " locally" } else { "" })
        }
        Request::Status { id, .. } => format!("Status {id}"),
        Request::Probe { campaign, .. } => format!("Probe{}", if *campaign { " campaign" } else { "" }),
    }
}

fn status(status: &Status) -> String {
    match status {
        Status::Aborted(reason) => format!("NO {reason}"),
        Status::Yes => "YES".into(),
        other => format!("{other:?}"),
    }
}

pub fn result(result: &BlockResult) -> String {
    match (result, result.unpack()) {
        (BlockResult::Opened(session), _) => format!("opened {session}"),
        (_, Some(statuses)) => statuses.iter().map(status).collect::<Vec<_>>().join(" "),
        (_, None) => "unreadable".into(),
    }
}

pub fn response(response: &Response) -> String {
    match response {
        Response::Done { results, .. } => {
            format!("Done [{}]", results.iter().map(result).collect::<Vec<_>>().join(", "))
        }
        Response::Balance { balance: Ok(balance), .. } => format!("Balance {balance}"),
        Response::Balance { balance: Err(reason), .. } => format!("Balance refused: {reason}"),
        Response::Status { status: code, name, participants, .. } => {
            let text = code.and_then(Status::from_code).map_or("nothing".into(), |s| status(&s));
            let name = name.map_or(String::new(), |name| format!(" {name}"));
            format!("Status {text}{name} {participants:?}")
        }
        Response::Leading { ballot, decided, .. } => format!("Leading {ballot} decided={decided}"),
        Response::Refused { why, .. } => match why {
            Refusal::NotLeader(Some(leader)) => format!("Refused, {leader} leads"),
            Refusal::NotLeader(None) => "Refused, no leader".into(),
            Refusal::NoQuorum => "Refused, no quorum".into(),
            Refusal::Busy => "Refused, busy".into(),
            Refusal::StorageFull => "Refused, no space".into(),
            Refusal::Malformed(what) => format!("Refused, malformed: {what}"),
        },
        Response::Unsure { .. } => "Unsure".into(),
    }
}
