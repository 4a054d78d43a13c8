//! Every command in each of its spellings, tables of wrong ones with the texts they get, and the codes of outcomes.

use proptest::collection::vec;
use proptest::prelude::*;

use super::{error, words};
use crate::resp::{Client, Command, Protocol, Reply, outcome, parse};
use crate::types::{AccountId, Reason, Session, ShardId, Transfer, TxnId};

const SESSION: Session = Session(1 << 48 | 2);
const ID: TxnId = TxnId { session: SESSION, seq: 7 };

fn transfer(from: u64, to: u64, amount: i64, id: Option<TxnId>) -> Command {
    Command::Transfer { transfer: Transfer { from: AccountId(from), to: AccountId(to), amount }, id }
}

fn balance(account: u64, local: bool) -> Command {
    Command::Balance { account: AccountId(account), local }
}

fn hello(protocol: Protocol, auth: bool, name: Option<&str>) -> Command {
    Command::Hello { protocol: Some(protocol), auth, name: name.map(String::from) }
}

#[test]
fn every_command_in_each_spelling() {
    let table: &[(&str, Command)] = &[
        ("SESSION", Command::Session),
        ("TRANSFER 1 2 3", transfer(1, 2, 3, None)),
        ("TRANSFER 000000000001 000000000020 000000000300", transfer(1, 20, 300, None)),
        ("TRANSFER 0 0 0", transfer(0, 0, 0, None)),
        ("TRANSFER 18446744073709551615 1 9223372036854775807", transfer(u64::MAX, 1, i64::MAX, None)),
        ("TRANSFER 1 2 3 ID D1-2:7", transfer(1, 2, 3, Some(ID))),
        ("TRANSFER 1 2 3 ID 281474976710658:7", transfer(1, 2, 3, Some(ID))),
        ("TRANSFER 1 2 3 ID D01-02:007", transfer(1, 2, 3, Some(ID))),
        ("BALANCE 5", balance(5, false)),
        ("BALANCE 000000000005 LOCAL", balance(5, true)),
        ("TXN D1-2:7", Command::Txn(ID)),
        ("TXN 281474976710658:7", Command::Txn(ID)),
        (
            "TXN D65535-281474976710655:18446744073709551615",
            Command::Txn(TxnId { session: Session(u64::MAX), seq: u64::MAX }),
        ),
        ("PING", Command::Ping(None)),
        ("PING Hi", Command::Ping(Some(b"Hi".to_vec()))),
        ("HELLO", Command::Hello { protocol: None, auth: false, name: None }),
        ("HELLO 2", hello(Protocol::Resp2, false, None)),
        ("HELLO 3", hello(Protocol::Resp3, false, None)),
        ("HELLO 3 AUTH me secret", hello(Protocol::Resp3, true, None)),
        ("HELLO 3 SETNAME a-b", hello(Protocol::Resp3, false, Some("a-b"))),
        ("HELLO 2 AUTH me secret SETNAME n", hello(Protocol::Resp2, true, Some("n"))),
        ("HELLO 2 SETNAME n AUTH me secret", hello(Protocol::Resp2, true, Some("n"))),
        ("INFO", Command::Info(vec![])),
        ("INFO Server CLIENTS", Command::Info(vec!["server".into(), "clients".into()])),
        ("COMMAND", Command::Command(None)),
        ("COMMAND COUNT", Command::Command(Some("count".into()))),
        ("COMMAND DOCS transfer balance", Command::Command(Some("docs".into()))),
        ("QUIT", Command::Quit),
        ("ECHO Hi", Command::Echo(b"Hi".to_vec())),
        ("SELECT 0", Command::Select),
        ("CLIENT ID", Command::Client(Client::Id)),
        ("CLIENT GETNAME", Command::Client(Client::GetName)),
        ("CLIENT SETNAME me", Command::Client(Client::SetName("me".into()))),
        ("CLIENT SETINFO LIB-NAME redis-py", Command::Client(Client::SetInfo)),
        ("CONFIG GET Save", Command::ConfigGet("save".into())),
    ];
    for (line, expected) in table {
        // Words in capitals are names and keywords; all others are repeated as they are, or hold digits.
        let is_keyword = |word: &str| word.chars().all(|letter| letter.is_ascii_uppercase());
        let spelt = |change: fn(&str) -> String| {
            let word = |word| if is_keyword(word) { change(word) } else { String::from(word) };
            line.split(' ').map(word).collect::<Vec<String>>().join(" ")
        };
        for line in [line.to_string(), spelt(str::to_lowercase), spelt(capitalised)] {
            assert_eq!(parse(&words(&line)).as_ref(), Ok(expected), "{line}");
        }
    }
    let no_name = [b"CLIENT".to_vec(), b"SETNAME".to_vec(), vec![]];
    assert_eq!(parse(&no_name), Ok(Command::Client(Client::SetName(String::new()))));
}

fn capitalised(word: &str) -> String {
    let (first, rest) = word.split_at(1);
    first.to_string() + &rest.to_lowercase()
}

#[test]
fn a_wrong_number_of_arguments() {
    let table = [
        ("session", "SESSION 1"),
        ("transfer", "TRANSFER"),
        ("transfer", "transfer 1 2"),
        ("transfer", "TRANSFER 1 2 3 ID"),
        ("transfer", "TRANSFER 1 2 3 ID D1-2:7 8"),
        ("balance", "BALANCE"),
        ("balance", "BALANCE 1 LOCAL 2"),
        ("txn", "TXN"),
        ("txn", "TXN D1-2 7"),
        ("ping", "PING a b"),
        ("echo", "ECHO"),
        ("echo", "ECHO a b"),
        ("select", "SELECT"),
        ("select", "SELECT 0 0"),
        ("client", "CLIENT"),
        ("client|id", "CLIENT ID 1"),
        ("client|getname", "CLIENT getname 1"),
        ("client|setname", "CLIENT SETNAME"),
        ("client|setinfo", "CLIENT SETINFO LIB-NAME"),
        ("config", "CONFIG"),
        ("config|get", "CONFIG GET"),
        ("config|get", "CONFIG GET save appendonly"),
    ];
    for (name, line) in table {
        let expected = error(&format!("ERR wrong number of arguments for '{name}' command"));
        assert_eq!(parse(&words(line)), Err(expected), "{line}");
    }
}

#[test]
fn arguments_of_the_wrong_kind() {
    let number = "must be a whole number from 0 to 18446744073709551615, not";
    let id = "ID must be SESSION:SEQUENCE as in D1-2:7, with a sequence from 1, not";
    let name = "Client names cannot contain spaces, newlines or special characters.";
    let table = [
        ("TRANSFER x 2 3", format!("from {number} 'x'")),
        ("TRANSFER 1 -2 3", format!("to {number} '-2'")),
        ("TRANSFER 1 +2 3", format!("to {number} '+2'")),
        ("TRANSFER 18446744073709551616 2 3", format!("from {number} '18446744073709551616'")),
        ("TRANSFER 1 2 3.5", "amount must be a whole number from 0 to 9223372036854775807, not '3.5'".into()),
        (
            "TRANSFER 1 2 9223372036854775808",
            "amount must be a whole number from 0 to 9223372036854775807, not '9223372036854775808'".into(),
        ),
        ("TRANSFER 1 2 3 AS D1-2:7", "syntax error: expected ID, not 'AS'".into()),
        ("TRANSFER 1 2 3 ID 7", format!("{id} '7'")),
        ("BALANCE account", format!("account {number} 'account'")),
        ("BALANCE 1 REMOTE", "syntax error: expected LOCAL, not 'REMOTE'".into()),
        ("TXN D1-2", format!("{id} 'D1-2'")),
        ("TXN D1-2:", format!("{id} 'D1-2:'")),
        ("TXN D1-2:0", format!("{id} 'D1-2:0'")),
        ("TXN D1-2:7:8", format!("{id} 'D1-2:7:8'")),
        ("TXN D1:7", format!("{id} 'D1:7'")),
        ("TXN D0-2:7", format!("{id} 'D0-2:7'")),
        ("TXN D1-0:7", format!("{id} 'D1-0:7'")),
        ("TXN D65536-2:7", format!("{id} 'D65536-2:7'")),
        ("TXN D1-281474976710656:7", format!("{id} 'D1-281474976710656:7'")),
        ("TXN 2:7", format!("{id} '2:7'")),
        ("TXN :7", format!("{id} ':7'")),
        ("SELECT 1", "DB index is out of range, there is 0 only".into()),
        ("SELECT bank", "invalid DB index".into()),
        ("HELLO three", "Protocol version is not an integer or out of range".into()),
        ("HELLO 3 AUTH me", "Syntax error in HELLO option 'AUTH'".into()),
        ("HELLO 3 SETNAME", "Syntax error in HELLO option 'SETNAME'".into()),
        ("HELLO 3 SETNAME é", name.into()),
        ("CLIENT SETNAME é", name.into()),
        (
            "CLIENT KILL 7",
            "unknown subcommand 'KILL' of CLIENT, which has ID, GETNAME, SETNAME, SETINFO".into(),
        ),
        ("CONFIG SET save 1", "unknown subcommand 'SET' of CONFIG, which has GET".into()),
    ];
    for (line, text) in table {
        assert_eq!(parse(&words(line)), Err(error(&format!("ERR {text}"))), "{line}");
    }
    assert_eq!(parse(&words("HELLO 4")), Err(error("NOPROTO unsupported protocol version")));
    let empty = [b"BALANCE".to_vec(), vec![]];
    assert_eq!(parse(&empty), Err(error(&format!("ERR account {number} ''"))));
    let spaced = [b"CLIENT".to_vec(), b"SETNAME".to_vec(), b"a b".to_vec()];
    assert_eq!(parse(&spaced), Err(error(&format!("ERR {name}"))));
    let no_text = [b"TXN".to_vec(), b"D1\xff".to_vec()];
    assert_eq!(parse(&no_text), Err(error(&format!("ERR {id} 'D1\u{fffd}'"))));
}

#[test]
fn unknown_commands_are_repeated_as_far_as_fits() {
    let unknown = |text: String| Err(error(&format!("ERR unknown command {text}")));
    let with = "with args beginning with:";
    assert_eq!(parse(&[]), unknown(format!("'', {with} ")));
    assert_eq!(parse(&words("Get")), unknown(format!("'Get', {with} ")));
    assert_eq!(parse(&words("GET a b")), unknown(format!("'GET', {with} 'a' 'b' ")));
    let long = "x".repeat(200);
    let shown = &long[..128];
    assert_eq!(parse(&words(&format!("{long} {long} b"))), unknown(format!("'{shown}', {with} '{shown}' ")));
    let most = &long[..100];
    let rest = &long[..25];
    assert_eq!(
        parse(&words(&format!("GET {most} {long}"))),
        unknown(format!("'GET', {with} '{most}' '{rest}' "))
    );
}

proptest! {
    /// An ID as the bank shows it, and with the plain number of its session, is the same ID.
    #[test]
    fn ids_are_read_as_they_are_shown(shard in 1..=u16::MAX, number in 1..1u64 << 48, seq in 1..=u64::MAX) {
        let id = TxnId { session: Session::new(ShardId(shard), number), seq };
        prop_assert_eq!(parse(&words(&format!("TXN {id}"))), Ok(Command::Txn(id)));
        prop_assert_eq!(parse(&words(&format!("TXN {}:{seq}", id.session.0))), Ok(Command::Txn(id)));
    }

    /// No arguments make it panic, and what is wrong with them is said in one line behind a code.
    #[test]
    fn any_arguments_are_judged(
        name in prop::sample::select(vec!["TRANSFER", "BALANCE", "TXN", "HELLO", "CLIENT", "CONFIG", "SELECT", "X"]),
        rest in vec(prop_oneof!["(ID|LOCAL|AUTH|SETNAME|GET|[0-9]{1,20}|D[0-9]{1,6}-[0-9]{1,16}:[0-9]{1,20})"
            .prop_map(String::into_bytes), vec(any::<u8>(), 0..256)], 0..7),
    ) {
        let args = [vec![name.as_bytes().to_vec()], rest].concat();
        if let Err(reply) = parse(&args) {
            let Reply::Error(text) = reply else { panic!("no error: {reply:?}") };
            prop_assert!(text.starts_with("ERR ") || text.starts_with("NOPROTO "), "{}", text);
        }
    }
}

#[test]
fn codes_of_outcomes() {
    let table = [
        (outcome::refused(Reason::InvalidAmount), "INVALID"),
        (outcome::refused(Reason::SameAccount), "INVALID"),
        (outcome::refused(Reason::UnknownAccount), "UNKNOWNACCOUNT"),
        (outcome::refused(Reason::NoQuorum), "NOQUORUM"),
        (outcome::refused(Reason::StorageFull), "STORAGEFULL"),
        (outcome::refused(Reason::LockContention), "LOCKED"),
        (outcome::refused(Reason::InsufficientBalance), "INSUFFICIENT"),
        (outcome::unknown(Some(ID)), "UNKNOWN"),
        (outcome::overloaded(None), "BUSY"),
        (outcome::overloaded(Some(ID)), "BUSY"),
        (outcome::no_answer(), "UNAVAILABLE"),
    ];
    for (reply, code) in table {
        let Reply::Error(text) = reply else { panic!("no error: {reply:?}") };
        assert!(text.strip_prefix(code).is_some_and(|rest| rest.starts_with(' ')), "{text}");
        assert!(!text.contains(['\r', '\n']), "{text}");
    }
    let ask = "UNKNOWN it may or may not take effect; send it again with ID D1-2:7, or ask with TXN D1-2:7; never send it under another ID";
    assert_eq!(outcome::unknown(Some(ID)), error(ask));
}
