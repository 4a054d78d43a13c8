//! Set files: what is accepted, what is refused and how, and the random files of the generator.

use std::collections::BTreeSet;

use proptest::prelude::*;
use shardpaxosbank::config::Topology;
use shardpaxosbank::testset::model::{self, Outcome};
use shardpaxosbank::testset::{Command, Set, SetFile, parse};
use shardpaxosbank::types::{AccountId, NodeId, Reason, Transfer};
use shardpaxosbank::workload::{SetFileOptions, SplitMix64, random_set_file};

fn parse_text(text: &str) -> Result<SetFile, String> {
    parse("t.csv", text.as_bytes(), &Topology::default()).map_err(|e| e.to_string())
}

/// The error of a file, without its name.
fn refusal(text: &str) -> String {
    let error = parse_text(text).expect_err(text);
    error.strip_prefix("t.csv:").unwrap_or_else(|| panic!("no file name: {error}")).to_string()
}

fn transfer(from: u64, to: u64, amount: i64) -> Command {
    Command::Transfer(Transfer { from: AccountId(from), to: AccountId(to), amount })
}

fn servers(numbers: &[u16]) -> Vec<NodeId> {
    numbers.iter().copied().map(NodeId).collect()
}

fn commands(set: &Set) -> Vec<Command> {
    set.rows.iter().map(|r| r.command).collect()
}

fn row_lines(file: &SetFile) -> Vec<usize> {
    file.sets.iter().flat_map(|s| &s.rows).map(|r| r.line).collect()
}

// What is accepted.

#[test]
fn shape_with_contacts() {
    let file = parse_text(
        "1,\"(100, 501, 8)\",\"[S1, S2, S4, S7]\",\"[S4, S1, S8]\"\n,\"(1001, 1650, 2)\",,\n2,(7),\"[S2]\",\n",
    )
    .unwrap();
    assert_eq!(file.sets.len(), 2);
    assert_eq!(file.sets[0].number, 1);
    assert_eq!(file.sets[0].live, servers(&[1, 2, 4, 7]));
    assert_eq!(file.sets[0].contacts, servers(&[1, 4, 8]));
    assert_eq!(commands(&file.sets[0]), [transfer(100, 501, 8), transfer(1001, 1650, 2)]);
    assert_eq!(file.sets[1].contacts, []);
    assert_eq!(commands(&file.sets[1]), [Command::Balance(AccountId(7))]);
    assert_eq!((file.sets[0].line, file.sets[1].line), (1, 3));
}

#[test]
fn shape_with_header_and_every_habit() {
    let text = "\u{feff}# a comment, with \"quotes\r\n\r\nSet Number,Transactions,Live Nodes,,\r\n\
                 1 ,\"( 1 ,2 ,  -3 )\",\"[ n1,S2 , s3,N4, ]\",,,\r\n,,,\r\n   \r\n,F( n3 ),\r\n#,(9),\r\n,r (S3)\r\n,( 1002 )";
    let file = parse_text(text).unwrap();
    assert_eq!(file.sets.len(), 1);
    assert_eq!(file.sets[0].live, servers(&[1, 2, 3, 4]));
    let expected = [
        transfer(1, 2, -3),
        Command::Fail(NodeId(3)),
        Command::Recover(NodeId(3)),
        Command::Balance(AccountId(1002)),
    ];
    assert_eq!(commands(&file.sets[0]), expected);
    assert_eq!(row_lines(&file), [4, 7, 9, 10]);
}

#[test]
fn shape_with_tabs() {
    let file = parse_text(
        "1\t(1, 2, 0)\t[n1, n2]\n1\tF(n1)\t[n2, n1]\n2\t(3)\t[]\n\t\"(4)\"\n1\t(5)\t[n1]\n1\t(6)\t\n",
    )
    .unwrap();
    let numbers: Vec<u64> = file.sets.iter().map(|s| s.number).collect();
    assert_eq!(numbers, [1, 2, 1], "a number that comes back is another set");
    assert_eq!(commands(&file.sets[0]), [transfer(1, 2, 0), Command::Fail(NodeId(1))]);
    assert_eq!(file.sets[1].live, [], "all servers down");
    assert_eq!(row_lines(&file), [1, 2, 3, 4, 5, 6]);
}

#[test]
fn a_quoted_field_may_span_lines() {
    let file = parse_text("1,(1),\"[S1,\r\n S2]\"\n\n# c\n,(2),\n").unwrap();
    assert_eq!(file.sets[0].live, servers(&[1, 2]));
    assert_eq!(row_lines(&file), [1, 5]);
}

#[test]
fn amounts_and_accounts_are_not_judged() {
    let file = parse_text(
        "1,\"(0, 3001, 9223372036854775807)\",[]\n,\"(5, 18446744073709551615, -9223372036854775808)\",\n,(3002),",
    )
    .unwrap();
    assert_eq!(
        commands(&file.sets[0])[..2],
        [transfer(0, 3001, i64::MAX), transfer(5, u64::MAX, i64::MIN)],
        "the servers abort these"
    );
    let unknown = file.unknown_accounts(&Topology::default());
    assert_eq!(unknown, [0, 3001, 3002, u64::MAX].map(AccountId));
}

// What is refused: one line that names file and line, what is wrong, and what is accepted.

#[test]
fn refusals() {
    let live = "\"[S1]\"";
    let cases: &[(String, &str, &str)] = &[
        (String::new(), "1: no set", "rows such as"),
        ("# nothing\n\n".into(), "1: no set", "rows such as"),
        ("Set,Transaction,Live\n".into(), "1: no set", "rows such as"),
        ("1,(1),\n".into(), "1: set 1 has no list of live servers", "\"[S1, S2, n3]\""),
        (format!("\n1,(1),{live}\n2,(1),\n"), "3: set 2 has no list of live servers", "\"[S1, S2, n3]\""),
        (format!("a,b,c\n,(1),{live}\n"), "2: a row before the first set", "set number in the first field"),
        (format!(",(1),{live}\n"), "1: a row before the first set", "set number in the first field"),
        (format!("x,(1),{live}\n"), "1: malformed set number \"x\"", "0 to 18446744073709551615"),
        (format!("-1,(1),{live}\n"), "1: malformed set number \"-1\"", "0 to 18446744073709551615"),
        (
            format!("18446744073709551616,(1),{live}\n"),
            "1: malformed set number",
            "0 to 18446744073709551615",
        ),
        (format!("1,(1),{live}\nx,(1),{live}\n"), "2: malformed set number \"x\"", "0 to"),
        (format!("1,,{live}\n"), "1: the row has no transaction", "F(server)"),
        (format!("1,\"(1, 2)\",{live}\n"), "1: malformed transaction \"(1, 2)\"", "(from, to, amount)"),
        (format!("1,\"(1, 2, 3, 4)\",{live}\n"), "1: malformed transaction", "(from, to, amount)"),
        (format!("1,\"(1, 2, 3\",{live}\n"), "1: malformed transaction", "(from, to, amount)"),
        (format!("1,(1, 2, 3),{live}\n"), "1: unexpected field \"[S1]\"", "fields with commas in quotes"),
        (format!("1,X(n1),{live}\n"), "1: malformed transaction \"X(n1)\"", "R(server)"),
        (format!("1,(),{live}\n"), "1: malformed account \"\"", "an integer from 0 to"),
        (format!("1,(-4),{live}\n"), "1: malformed account \"-4\"", "an integer from 0 to"),
        (format!("1,(1.5),{live}\n"), "1: malformed account \"1.5\"", "an integer from 0 to"),
        (format!("1,(18446744073709551616),{live}\n"), "1: malformed account", "to 18446744073709551615"),
        (format!("1,\"(1, 2, 3.0)\",{live}\n"), "1: malformed amount \"3.0\"", "an integer from -9223"),
        (format!("1,\"(1, 2, ten)\",{live}\n"), "1: malformed amount \"ten\"", "an integer from -9223"),
        (
            format!("1,\"(1, 2, 9223372036854775808)\",{live}\n"),
            "1: malformed amount",
            "to 9223372036854775807",
        ),
        (format!("1,F(1),{live}\n"), "1: malformed server \"1\"", "S1…S9 or n1…n9"),
        (format!("1,F(),{live}\n"), "1: malformed server \"\"", "S1…S9 or n1…n9"),
        (format!("1,F(S10),{live}\n"), "1: unknown server \"S10\"", "S1…S9 or n1…n9"),
        ("1,(1),\"[S0]\"\n".into(), "1: unknown server \"S0\"", "S1…S9"),
        ("1,(1),\"[S1, n99999999]\"\n".into(), "1: unknown server \"n99999999\"", "S1…S9"),
        ("1,(1),\"[S1, n1]\"\n".into(), "1: S1 stands twice in the list of live servers", "each server once"),
        ("1,(1),\"[S1,, S2]\"\n".into(), "1: malformed server \"\"", "S1…S9"),
        ("1,(1),\"S1, S2\"\n".into(), "1: malformed list of live servers \"S1, S2\"", "\"[S1, S2, n3]\""),
        (
            format!("1,(1),{live},\"[S1, S4, S3]\"\n"),
            "1: the contact servers S1 and S3 are of one cluster",
            "one of",
        ),
        (format!("1,(1),{live},[S12]\n"), "1: unknown server \"S12\"", "S1…S9"),
        (
            format!("1,(1),{live}\n1,(2),\"[S1, S2]\"\n"),
            "2: set 1 began with other live servers in line 1",
            "another",
        ),
        (format!("1,(1),{live}\n,(2),[]\n"), "2: set 1 began with other live servers", "the same list"),
        (
            format!("1,(1),{live},[S1]\n1,(2),{live},[S2]\n"),
            "2: set 1 has other contact servers",
            "same list",
        ),
        (format!("1,(1),{live},,5\n"), "1: unexpected field \"5\"", "set number, transaction"),
        (format!("1,(1),{live}\n1,\"(2),{live}\n"), "2: malformed transaction", "F(server)"),
        ("Set,\"Transactions,Live\n1,(1),[S1]\n".into(), "1: a quote in the header", "header of one line"),
        (format!("1,(1),{live}\r2,(1),{live}\r\n"), "1: a line ends in a lone carriage return", "LF or CRLF"),
    ];
    for (text, start, accepted) in cases {
        let error = refusal(text);
        assert!(error.starts_with(start), "{text:?}\n  gave     {error}\n  expected {start}");
        let (_, rest) =
            error.split_once("; accepted: ").unwrap_or_else(|| panic!("what is accepted? {error}"));
        assert!(rest.contains(accepted), "{text:?}\n  gave     {error}\n  expected {accepted}");
        assert!(!error.contains('\n'), "{error}");
    }
}

#[test]
fn refuses_other_encodings() {
    let utf16: Vec<u8> = "1,(1),[S1]\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let mut file = vec![0xff, 0xfe];
    file.extend(utf16);
    assert!(parse("t.csv", &file, &Topology::default()).unwrap_err().to_string().contains("not UTF-8"));
}

#[test]
fn servers_are_those_of_the_topology() {
    let small = Topology { clusters: 1, servers_per_cluster: 1, ..Topology::default() };
    assert!(parse("t", b"1,(1),[S1]", &small).is_ok());
    let error = parse("t", b"1,(1),[S2]", &small).unwrap_err().to_string();
    assert_eq!(error, "t:1: unknown server \"S2\"; accepted: S1…S1 or n1…n1");
}

// Random files.

#[test]
fn random_files_parse_and_show_everything() {
    let topology = Topology::default();
    let mut shapes = BTreeSet::new();
    let mut reasons = BTreeSet::new();
    let mut kinds = BTreeSet::new();
    for seed in 0..30 {
        let options =
            SetFileOptions { hot_accounts: (seed % 2 == 0).then_some(4), ..SetFileOptions::default() };
        let text = random_set_file(seed, &topology, 200, &options);
        assert_eq!(text, random_set_file(seed, &topology, 200, &options), "seed {seed}");
        let file = parse("random", text.as_bytes(), &topology).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        assert_eq!(row_lines(&file).len(), 200, "seed {seed}");
        assert_eq!(file.sets.len(), 3, "seed {seed}");
        shapes.insert((text.contains('\t'), text.contains('S') && !text.starts_with("Set")));
        for set in model::run(&topology, &file, false) {
            for outcome in &set.rows {
                kinds.insert(kind_of(outcome));
                if let Outcome::Aborted(reason) = outcome {
                    reasons.insert(*reason);
                }
            }
        }
    }
    assert_eq!(shapes.len(), 3);
    assert_eq!(kinds.len(), 4);
    // One transaction at a time meets no lock, the model has no disk, and rows of a set have no ids of clients.
    let never = [Reason::LockContention, Reason::StorageFull, Reason::IdReused, Reason::NoSession];
    assert_eq!(reasons, Reason::ALL.into_iter().filter(|r| !never.contains(r)).collect());
}

#[test]
fn random_files_without_extras_hold_plain_transfers_only() {
    let topology = Topology::default();
    let options = SetFileOptions {
        sets: 1,
        reads: false,
        failures: false,
        invalid: false,
        ..SetFileOptions::default()
    };
    for seed in 0..5 {
        let text = random_set_file(seed, &topology, 300, &options);
        let file = parse("random", text.as_bytes(), &topology).unwrap();
        assert_eq!(file.sets[0].live.len(), 9);
        assert_eq!(file.unknown_accounts(&topology), []);
        for outcome in &model::run(&topology, &file, false)[0].rows {
            assert!(matches!(outcome, Outcome::Committed | Outcome::Aborted(Reason::InsufficientBalance)));
        }
    }
}

fn kind_of(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Committed => "committed",
        Outcome::Aborted(_) => "aborted",
        Outcome::Balance(_) => "balance",
        Outcome::Done => "done",
    }
}

fn without_lines(mut file: SetFile) -> SetFile {
    for set in &mut file.sets {
        set.line = 0;
        set.rows.iter_mut().for_each(|row| row.line = 0);
    }
    file
}

struct Noisy {
    text: String,
    /// Where the rows of the original now begin.
    row_lines: Vec<usize>,
    /// Where a malformed row was put in.
    bad_line: Option<usize>,
}

fn add_noise(text: &str, rng: &mut SplitMix64, bad: bool) -> Noisy {
    let separator = if text.contains('\t') { "\t" } else { "," };
    let end = if rng.one_in(2) { "\n" } else { "\r\n" };
    let header = usize::from(text.starts_with("Set Number"));
    // Behind the first row, so that it cannot be taken for a header.
    let bad_at = header + 1 + rng.below(11) as usize;
    let mut noisy = Noisy { text: String::new(), row_lines: Vec::new(), bad_line: None };
    let mut line = 1;
    if rng.one_in(2) {
        noisy.text.push('\u{feff}');
    }
    for (i, original) in text.lines().enumerate() {
        while rng.one_in(3) {
            noisy.text += ["", "# \"a, comment", "  ", "#"][rng.below(4) as usize];
            noisy.text += end;
            line += 1;
        }
        if bad && i == bad_at {
            noisy.text += &format!("{separator}\"(1,\n 2)\"{separator}{end}");
            noisy.bad_line = Some(line);
            line += 2;
        }
        if i >= header {
            noisy.row_lines.push(line);
        }
        let mut row = original.to_string();
        // A line end inside a quoted field counts as a line of the file.
        if rng.one_in(3) && row.contains("\"(") {
            row = row.replacen("\"(", "\"(\n", 1);
            line += 1;
        }
        noisy.text += &row;
        if rng.one_in(3) {
            noisy.text += separator;
        }
        noisy.text += end;
        line += 1;
    }
    if rng.one_in(2) {
        noisy.text.truncate(noisy.text.trim_end_matches(['\r', '\n']).len());
    }
    noisy
}

fn seeded_file() -> impl Strategy<Value = String> {
    any::<u64>().prop_map(|seed| {
        let options = SetFileOptions { hot_accounts: Some(3), ..SetFileOptions::default() };
        random_set_file(seed, &Topology::default(), 12, &options)
    })
}

fn check_error_is_one_line(bytes: &[u8]) {
    if let Err(e) = parse("f.csv", bytes, &Topology::default()) {
        let text = e.to_string();
        assert!(text.starts_with(&format!("f.csv:{}: ", e.line)), "{text}");
        assert!(text.contains("; accepted: "), "{text}");
        assert!(!text.chars().any(char::is_control), "{text:?}");
        let lines = bytes.iter().filter(|b| **b == b'\n').count() + 1;
        assert!((1..=lines).contains(&e.line), "line {} of {lines}", e.line);
    }
}

proptest! {
    #[test]
    fn any_bytes_give_sets_or_one_line(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        check_error_is_one_line(&bytes);
    }

    #[test]
    fn any_likely_text_gives_sets_or_one_line(text in "[0-9,\t\"\\[\\]()SnFR#\r\n -]{0,80}") {
        check_error_is_one_line(text.as_bytes());
    }

    #[test]
    fn damaged_files_give_sets_or_one_line(
        text in seeded_file(),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), 0..3u8, any::<u8>()), 1..6),
        cut in proptest::option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = text.into_bytes();
        for (place, how, byte) in damage {
            let at = place.index(bytes.len());
            match how {
                0 => bytes[at] = byte,
                1 => bytes.insert(at, byte),
                _ => drop(bytes.remove(at)),
            }
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        check_error_is_one_line(&bytes);
    }

    /// Comments, blank rows, trailing separators, other line ends and a byte order mark change no row, and a malformed
    /// row among them is found in its own line.
    #[test]
    fn noise_changes_nothing_but_the_lines(text in seeded_file(), seed in any::<u64>(), bad in any::<bool>()) {
        let noisy = add_noise(&text, &mut SplitMix64::new(seed), bad);
        match (parse_text(&noisy.text), noisy.bad_line) {
            (Ok(file), None) => {
                prop_assert_eq!(row_lines(&file), noisy.row_lines);
                prop_assert_eq!(without_lines(file), without_lines(parse_text(&text).unwrap()));
            }
            (Err(error), Some(line)) => {
                let start = format!("t.csv:{line}: malformed transaction");
                prop_assert!(error.starts_with(&start), "{} but expected {}", error, start);
            }
            (result, line) => prop_assert!(false, "{:?}, expected {:?} in {:?}", result, line, noisy.text),
        }
    }
}
