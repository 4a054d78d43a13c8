//! What the tests here share: running `bank` with a limit, reading what it prints, and comparing it with the model.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use shardpaxosbank::config::Topology;
use shardpaxosbank::testset::{SetFile, model, parse};
use shardpaxosbank::types::NodeId;
use tempfile::TempDir;

/// For anything that must happen at all. Only a hang takes so long, however slow the machine.
pub const LIMIT: Duration = Duration::from_secs(180);

pub fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data").join(name)
}

pub fn temp() -> TempDir {
    tempfile::Builder::new().prefix("bank-e2e-").tempdir().expect("a temporary directory")
}

/// Writes a file into a directory and gives its path.
pub fn put(dir: &Path, name: &str, text: &str) -> String {
    let path = dir.join(name);
    std::fs::write(&path, text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    path.display().to_string()
}

pub fn bank(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bank"));
    // Whoever runs the tests may log what he likes; what is compared here is the default.
    command.args(arguments).env_remove("RUST_LOG").stdin(Stdio::null());
    command
}

/// `plain` under strace, which writes what it sees to a file. The tracer is a process beside it, so that whoever starts
/// this has the traced one as its child, to kill and to wait for.
pub fn traced(plain: &Command, trace: &Path, options: &[&str]) -> Command {
    let found = Command::new("strace").arg("-V").stdout(Stdio::null()).stderr(Stdio::null()).status();
    assert!(
        found.is_ok_and(|status| status.success()),
        "strace cannot be run, and this test looks at system calls with it: install it (as .ci/run does)"
    );
    let mut command = Command::new("strace");
    command.args(["-D", "-f", "-o"]).arg(trace).args(options).arg(plain.get_program()).args(plain.get_args());
    for (name, value) in plain.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command.stdin(Stdio::null());
    command
}

/// A trace to its last line: the tracer may outlive the traced process by a moment.
pub fn whole_trace(trace: &Path) -> Option<String> {
    let text = std::fs::read_to_string(trace).ok()?;
    let ends = |line: &str| line.contains("+++ exited with") || line.contains("+++ killed by");
    text.lines().last().is_some_and(ends).then_some(text)
}

/// A finished process.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Ran {
    /// The objects of `--json`, each valid under the schema; anything else on standard output is an error.
    pub fn sets(&self) -> Vec<Value> {
        self.out.lines().map(set_object).collect()
    }

    pub fn with_code(self, code: i32) -> Ran {
        assert_eq!(self.code, Some(code), "{self:?}");
        self
    }
}

/// One line of `--json`, checked against the schema.
pub fn set_object(line: &str) -> Value {
    static SCHEMA: LazyLock<jsonschema::Validator> = LazyLock::new(|| {
        let text = std::fs::read_to_string(data("run-output.schema.json")).expect("the schema");
        jsonschema::validator_for(&serde_json::from_str(&text).expect("JSON")).expect("a schema")
    });
    let object: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
    let errors: Vec<String> = SCHEMA.iter_errors(&object).map(|e| e.to_string()).collect();
    assert_eq!(errors, Vec::<String>::new(), "{line}");
    object
}

/// A running process whose output is read as it comes. It is killed when it is dropped.
pub struct Running {
    child: Child,
    out: Receiver<String>,
    err: Receiver<String>,
}

impl Running {
    pub fn start(mut command: Command) -> Running {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("bank starts");
        let out = lines_of(child.stdout.take().expect("it is piped"));
        let err = lines_of(child.stderr.take().expect("it is piped"));
        Running { child, out, err }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The next line of standard output; `None` at its end.
    pub fn line(&mut self) -> Option<String> {
        match self.out.recv_timeout(LIMIT) {
            Ok(line) => Some(line),
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => panic!("it says nothing for {LIMIT:?}"),
        }
    }

    /// Waits for a line on standard error that contains `part`.
    pub fn complains_of(&mut self, part: &str) {
        loop {
            let line = self.err.recv_timeout(LIMIT);
            if line.unwrap_or_else(|e| panic!("no word of {part:?} on standard error: {e}")).contains(part) {
                return;
            }
        }
    }

    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("a child can be asked").is_some()
    }

    /// SIGKILL: no chance to flush or to say anything.
    pub fn kill(&mut self) {
        // Fails only if it has ended by itself; the wait tells.
        let _ = self.child.kill();
        self.child.wait().expect("a child can be waited for");
    }

    pub fn interrupt(&self) {
        // SAFETY: a plain system call on a child that was not waited for, so its id is still its own.
        assert_eq!(unsafe { libc::kill(self.child.id() as i32, libc::SIGINT) }, 0);
    }

    /// Waits for its end.
    pub fn finish(mut self) -> Ran {
        let collect = |lines: &Receiver<String>, child: &mut Child| {
            let mut text = String::new();
            let end = Instant::now() + LIMIT;
            loop {
                match lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                    Ok(line) => text = text + &line + "\n",
                    Err(RecvTimeoutError::Disconnected) => return text,
                    Err(RecvTimeoutError::Timeout) => {
                        child.kill().expect("it can be killed");
                        panic!("it does not end; so far it said:\n{text}");
                    }
                }
            }
        };
        let out = collect(&self.out, &mut self.child);
        let err = collect(&self.err, &mut self.child);
        let code = self.child.wait().expect("a child can be waited for").code();
        Ran { code, out, err }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Most memory that a process ever used, in kB.
pub fn peak_memory_kb(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).expect("it runs");
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).expect("Linux says so");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

fn lines_of(stream: impl Read + Send + 'static) -> Receiver<String> {
    let (send, lines) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            if send.send(line).is_err() {
                return;
            }
        }
    });
    lines
}

/// Runs `bank` to its end.
pub fn run(arguments: &[&str]) -> Ran {
    Running::start(bank(arguments)).finish()
}

/// Asks again and again, without hurry, until the answer is `Some`.
pub fn eventually<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + LIMIT;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < end, "waited {LIMIT:?} for {what}");
        std::thread::park_timeout(Duration::from_millis(2));
    }
}

/// The numbers in the names of a server's files that begin and end so, in order.
pub fn numbered(place: &Path, prefix: &str, suffix: &str) -> Vec<u64> {
    let entries = std::fs::read_dir(place).expect("a directory").flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut numbers: Vec<u64> =
        names.filter_map(|name| name.strip_prefix(prefix)?.strip_suffix(suffix)?.parse().ok()).collect();
    numbers.sort_unstable();
    numbers
}

pub fn load(path: &Path, topology: &Topology) -> SetFile {
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    parse(&path.display().to_string(), &bytes, topology).unwrap_or_else(|e| panic!("{e}"))
}

/// What a set printed, in the form of the `.expected.json` files. All servers that were up all the time must hold the
/// balance that is shown; those of a cluster without a majority may not know it.
pub fn as_expected(object: &Value, topology: &Topology) -> Value {
    let rows = object["results"].as_array().expect("valid under the schema");
    let mut up: BTreeSet<String> =
        object["live"].as_array().expect("valid").iter().map(|s| s.as_str().expect("valid").into()).collect();
    let results: Vec<Value> = rows
        .iter()
        .map(|row| {
            match (row["kind"].as_str(), row["server"].as_str()) {
                (Some("fail"), Some(server)) => _ = up.remove(server),
                (Some("recover"), Some(server)) => _ = up.insert(server.into()),
                _ => {}
            }
            let mut short = json!({"n": row["n"], "kind": row["kind"]});
            for key in ["outcome", "reason"] {
                if let Some(value) = row.get(key) {
                    short[key] = value.clone();
                }
            }
            if let Some(balance) = row.get("balance") {
                short["balance"] = balance.clone();
            }
            short
        })
        .collect();
    let mut balances = BTreeMap::new();
    for (account, held) in object["modified"].as_object().expect("valid under the schema") {
        let held = held.as_object().expect("valid under the schema");
        // Null: a process that was killed; what is left must still be a majority to say anything.
        let live: Vec<&Value> =
            held.iter().filter(|(s, b)| up.contains(*s) && !b.is_null()).map(|(_, b)| b).collect();
        if live.len() < topology.majority() {
            continue;
        }
        assert!(live.iter().all(|b| *b == live[0]), "live servers differ on account {account}: {object}");
        balances.insert(account.clone(), live[0].clone());
    }
    json!({"set": object["set"], "results": results, "balances": balances})
}

/// Compares what was printed with what must come of the file. Balances of clusters without a majority are left out.
pub fn assert_as_model(context: &str, sets: &[Value], expected: &Value, topology: &Topology) {
    let expected = expected.as_array().expect("a list of sets");
    assert_eq!(sets.len(), expected.len(), "{context}: sets");
    for (i, (set, expected)) in sets.iter().zip(expected).enumerate() {
        let actual = as_expected(set, topology);
        for (row, must) in actual["results"]
            .as_array()
            .into_iter()
            .flatten()
            .zip(expected["results"].as_array().into_iter().flatten())
        {
            assert_eq!(row, must, "{context}, set {} of the file", i + 1);
        }
        assert_eq!(actual["results"], expected["results"], "{context}, set {} of the file", i + 1);
        for (account, balance) in actual["balances"].as_object().into_iter().flatten() {
            assert_eq!(
                balance,
                &expected["balances"][account],
                "{context}, set {} of the file: account {account}",
                i + 1
            );
        }
        let named = |value: &Value, key: &str| -> BTreeSet<String> {
            value[key].as_object().into_iter().flatten().map(|(account, _)| account.clone()).collect()
        };
        assert_eq!(named(set, "modified"), named(expected, "balances"), "{context}, set {}", i + 1);
    }
}

/// The model's word on a file, as JSON.
pub fn model_of(file: &SetFile, topology: &Topology, reset_each_set: bool) -> Value {
    model::to_json(file, &model::run(topology, file, reset_each_set))
}

/// The balances of a set's `modified`, which must be the same on all servers.
pub fn agreed_balances(object: &Value) -> BTreeMap<u64, u64> {
    let accounts = object["modified"].as_object().expect("valid under the schema");
    let agreed = |(account, held): (&String, &Value)| {
        let held: Vec<u64> =
            held.as_object().into_iter().flatten().map(|(_, b)| b.as_u64().expect("a balance")).collect();
        assert!(held.iter().all(|b| *b == held[0]), "servers differ on account {account}: {object}");
        (account.parse().expect("a number"), held[0])
    };
    accounts.iter().map(agreed).collect()
}

/// A set in which all servers of `topology` are up.
pub fn set_text(number: usize, topology: &Topology, rows: &[String]) -> String {
    let live: Vec<String> = topology.servers().map(|s: NodeId| s.to_string()).collect();
    let mut text = String::new();
    for (i, row) in rows.iter().enumerate() {
        let lead = format!("{number},\"{row}\",\"[{}]\"\n", live.join(", "));
        text += &if i == 0 { lead } else { format!(",\"{row}\",\n") };
    }
    text
}

/// A set that moves nothing: it reads every account, which waits for what is in doubt, and names each in a transfer
/// that cannot be, so that all servers show their balances.
pub fn audit_set(number: usize, topology: &Topology) -> String {
    let reads = (1..=topology.accounts).map(|a| format!("({a})"));
    let named = (1..=topology.accounts).map(|a| format!("({a}, {a}, 0)"));
    set_text(number, topology, &reads.chain(named).collect::<Vec<_>>())
}

/// The result of an [`audit_set`]: what was read is what all servers hold, and no unit was made or lost.
pub fn audit(object: &Value, topology: &Topology) -> BTreeMap<u64, u64> {
    let held = agreed_balances(object);
    for row in object["results"].as_array().into_iter().flatten().filter(|r| r["kind"] == "balance") {
        let account = row["account"].as_u64().expect("valid under the schema");
        assert_eq!(row["balance"].as_u64(), Some(held[&account]), "{row}");
    }
    assert_eq!(held.len() as u64, topology.accounts);
    assert_eq!(held.values().sum::<u64>(), topology.accounts * topology.initial_balance, "B2: {held:?}");
    held
}
