//! Bad input: exit code 2 and one line that names the place, what is wrong and what is accepted, before anything is
//! started or changed.

use std::net::TcpListener;

use crate::common::{Ran, put, run, temp};
use crate::process::config_text;

const LIVE: &str = "\"[S1, S2, S3, S4, S5, S6, S7, S8, S9]\"";

fn assert_refused(ran: &Ran, parts: &[&str]) {
    assert_eq!((ran.code, ran.out.as_str()), (Some(2), ""), "{ran:?}");
    assert_eq!(ran.err.lines().count(), 1, "one line, not\n{}", ran.err);
    for part in parts {
        assert!(ran.err.contains(part), "no {part:?} in {:?}", ran.err);
    }
}

/// `text` as a set file is refused with all of `parts`, and no data directory is made.
fn assert_bad_file(text: &str, parts: &[&str]) {
    let dir = temp();
    let file = put(dir.path(), "bad.csv", text);
    let kept = dir.path().join("kept");
    let ran = run(&["run", &file, "--json", "--data-dir", &kept.display().to_string()]);
    assert_refused(&ran, parts);
    assert!(!kept.exists(), "{} was made for {text:?}", kept.display());
}

#[test]
fn malformed_rows_name_file_and_line() {
    let good = format!("1,\"(1, 2, 3)\",{LIVE}\n");
    for bad in [
        "(1, 2)",
        "(1, 2, x)",
        "(1, 2, 1.5)",
        "(1, 2, 99999999999999999999)",
        "(1, 2, -99999999999999999999)",
        "(-1, 2, 3)",
        "(99999999999999999999, 2, 3)",
        "(1, 2, 3, 4)",
        "()",
        "1, 2, 3",
        "(1, 2, 3",
        "X(S1)",
        "F(S10)",
        "F(n0)",
        "R(S)",
        "F(4)",
        "(1, 2, 3) (4, 5, 6)",
    ] {
        assert_bad_file(&format!("{good},\"{bad}\",\n"), &["bad.csv:2"]);
    }
}

#[test]
fn unknown_servers_and_missing_lists_name_file_and_line() {
    assert_bad_file("1,\"(1, 2, 3)\",\"[S1, S10]\"\n", &["bad.csv:1", "S10"]);
    assert_bad_file("# first\n1,\"(1, 2, 3)\",\"[S1, T2]\"\n", &["bad.csv:2", "T2"]);
    assert_bad_file("1,\"(1, 2, 3)\",\"[S1\"\n", &["bad.csv:1"]);
    assert_bad_file("1,\"(1, 2, 3)\",\"[S1, S2]\",\"[S10]\"\n", &["bad.csv:1", "S10"]);
    assert_bad_file("1,\"(1, 2, 3)\",\n", &["bad.csv:1", "live"]);
    assert_bad_file(&format!("1,\"(1, 2, 3)\",{LIVE}\n2,\"(1, 2, 3)\",\n"), &["bad.csv:2", "live"]);
    assert_bad_file(&format!(",\"(1, 2, 3)\",{LIVE}\n"), &["bad.csv:1"]);
    assert_bad_file(&format!("1,\"(1, 2, 3)\",{LIVE}\n1,\"(1, 2, 3)\",\"[S1]\"\n"), &["bad.csv:2"]);
    assert_bad_file("", &["bad.csv"]);
    assert_bad_file("Set Number,Transactions,Live Nodes\n", &["bad.csv"]);
}

#[test]
fn impossible_topologies_name_the_flag() {
    let dir = temp();
    let file = put(dir.path(), "good.csv", "1,\"(1, 2, 3)\",\"[S1]\"\n");
    let kept = dir.path().join("kept");
    let shown = kept.display().to_string();
    for flags in [
        ["--clusters", "0"],
        ["--clusters", "1001"],
        ["--clusters", "three"],
        ["--servers", "2"],
        ["--servers", "0"],
        ["--servers", "11"],
        ["--accounts", "2"],
        ["--accounts", "0"],
        ["--accounts", "99999999999"],
        ["--balance", "18446744073709551615"],
        ["--in-flight", "0"],
        ["--in-flight", "many"],
    ] {
        assert_refused(&run(&["run", &file, "--data-dir", &shown, flags[0], flags[1]]), &[flags[0]]);
    }
    assert!(!kept.exists(), "{shown} was made");
}

#[test]
fn wrong_flags_are_named() {
    let dir = temp();
    let file = put(dir.path(), "good.csv", "1,\"(1, 2, 3)\",\"[S1]\"\n");
    let kept = dir.path().join("kept");
    let shown = kept.display().to_string();
    let config = put(dir.path(), "cluster.toml", &config_text(1, &[1, 2, 3]));
    for (arguments, parts) in [
        (&["run"][..], &["FILE"][..]),
        (&["run", &file, "--fast"], &["--fast"]),
        (&["run", &file, "--fresh"], &["--data-dir"]),
        (&["run", &file, "--data-dir", &shown, "--reset-each-set"], &["--reset-each-set", "--data-dir"]),
        (&["run", &file, "--config", &config, "--data-dir", &shown], &["--config", "--data-dir"]),
        (&["run", &file, "--config", &config, "--accounts", "30"], &["--config", "--accounts"]),
        (&["run", &file, "--config", &config, "--reset-each-set"], &["--reset-each-set", "--config"]),
        (&["fly"], &["fly"]),
        (&[], &["help"]),
        (&["node", "--config", &config, "--server", "S1"], &["--data-dir"]),
        (&["node", "--config", &config, "--data-dir", &shown], &["--server"]),
        (&["node", "--config", &config, "--data-dir", &shown, "--server", "S4"], &["--server", "S4"]),
        (&["node", "--config", &config, "--data-dir", &shown, "--server", "first"], &["--server", "first"]),
    ] {
        assert_refused(&run(arguments), parts);
    }
    assert!(!kept.exists(), "{shown} was made");
}

#[test]
fn files_that_cannot_be_used_are_named() {
    let dir = temp();
    let missing = dir.path().join("missing.csv").display().to_string();
    assert_refused(&run(&["run", &missing]), &["missing.csv", "No such file"]);
    assert_refused(&run(&["run", &dir.path().display().to_string()]), &["directory"]);
    let bytes = dir.path().join("bytes.csv");
    std::fs::write(&bytes, [0xff, 0xfe, 0x00, 0x31]).expect("written");
    assert_refused(&run(&["run", &bytes.display().to_string()]), &["bytes.csv"]);
    // A file where the data directory, or a server's, should be.
    let file = put(dir.path(), "good.csv", "1,\"(1, 2, 3)\",\"[S1]\"\n");
    assert_refused(&run(&["run", &file, "--data-dir", &file]), &["good.csv"]);
    std::fs::create_dir(dir.path().join("kept")).expect("a directory");
    put(&dir.path().join("kept"), "S1", "a file");
    assert_refused(
        &run(&["run", &file, "--data-dir", &dir.path().join("kept").display().to_string()]),
        &["S1"],
    );
}

#[test]
fn a_bad_configuration_names_file_and_line() {
    let dir = temp();
    let sets = put(dir.path(), "good.csv", "1,\"(1, 2, 3)\",\"[S1]\"\n");
    let kept = dir.path().join("kept").display().to_string();
    let good = config_text(1, &[21, 22, 23]);
    for (from, to, parts) in [
        ("clusters = 1", "clusters = one", &["c.toml:2"][..]),
        ("accounts = ", "acounts = ", &["c.toml", "accounts"]),
        ("allow_admin = true", "alow_admin = true", &["c.toml:6", "alow_admin"]),
        ("servers_per_cluster = 3", "servers_per_cluster = 2", &["c.toml", "odd"]),
        ("127.0.0.1:22", "127.0.0.1:21", &["c.toml", "same address"]),
        ("127.0.0.1:22", "nowhere", &["c.toml", "S2"]),
        ("S3 = ", "S7 = ", &["c.toml", "S7"]),
        ("00010203", "0001020", &["c.toml", "cluster_id"]),
        ("[servers]", "[servers", &["c.toml:7"]),
    ] {
        assert!(good.contains(from), "{from} in\n{good}");
        let config = put(dir.path(), "c.toml", &good.replacen(from, to, 1));
        assert_refused(&run(&["run", &sets, "--config", &config]), parts);
        let node = ["node", "--config", &config, "--server", "S1", "--data-dir", &kept, "--format"];
        assert_refused(&run(&node), parts);
    }
    assert_refused(&run(&["run", &sets, "--config", &kept]), &["kept", "No such file"]);
    assert!(!dir.path().join("kept").exists(), "a data directory was made");
}

#[test]
fn a_port_in_use_is_named_before_anything_is_formatted() {
    let dir = temp();
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("an address").port();
    let config = put(dir.path(), "cluster.toml", &config_text(1, &[port, 22, 23]));
    let kept = dir.path().join("kept");
    let shown = kept.display().to_string();
    let ran = run(&["node", "--config", &config, "--server", "S1", "--data-dir", &shown, "--format"]);
    assert_refused(&ran, &["S1", &format!("127.0.0.1:{port}"), "in use"]);
    assert!(!kept.exists(), "{shown} was made");
}

#[test]
fn an_unformatted_directory_is_not_made_a_server_by_accident() {
    let dir = temp();
    let config = put(dir.path(), "cluster.toml", &config_text(1, &crate::process::free_ports(3)));
    let kept = dir.path().join("kept").display().to_string();
    let ran = run(&["node", "--config", &config, "--server", "S1", "--data-dir", &kept]);
    assert_refused(&ran, &["--data-dir", "format"]);
}
