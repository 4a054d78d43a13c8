//! What a person may type between two sets: one command a line, with editing, history and completion.
//!
//! Every command stands once, in `COMMANDS`; parser, help and completion all read that table. Older names such as
//! `PrintBalance(100)` are understood beside ours, in any case, with or without parentheses.
//!
//! Deliberately absent: carrying anything out, and a history file, because what was typed belongs to this run only.

use std::io;
use std::path::PathBuf;

use rustyline::completion::{Completer, FilenameCompleter, Pair};
use rustyline::error::ReadlineError;
use rustyline::history::MemHistory;
use rustyline::{CompletionType, Config, Context, Editor, Helper, Highlighter, Hinter, Validator};

use super::tables;
use crate::config::Topology;
use crate::types::{AccountId, NodeId, Transfer};

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PromptCommand {
    /// Run the next set.
    Next,
    /// Leave the next set out.
    Skip,
    /// An account that exists, on every server of its cluster.
    Balance(AccountId),
    Log(NodeId),
    Db,
    Performance,
    Views,
    Fail(NodeId),
    Recover(NodeId),
    Crash(NodeId),
    Restart(NodeId),
    /// Not validated, see [`Transfer`].
    Transfer(Transfer),
    Save(PathBuf),
    Help,
    Quit,
}

/// What follows a command's name, and what they make together.
enum Takes {
    Nothing(PromptCommand),
    Account(fn(AccountId) -> PromptCommand),
    Server(fn(NodeId) -> PromptCommand),
    Transfer(fn(Transfer) -> PromptCommand),
    File(fn(PathBuf) -> PromptCommand),
}

struct Spec {
    name: &'static str,
    aliases: &'static [&'static str],
    takes: Takes,
    what: &'static str,
}

static COMMANDS: &[Spec] = &[
    Spec { name: "next", aliases: &[], takes: Takes::Nothing(PromptCommand::Next), what: "run the next set" },
    Spec {
        name: "skip",
        aliases: &[],
        takes: Takes::Nothing(PromptCommand::Skip),
        what: "leave the next set out",
    },
    Spec {
        name: "balance",
        aliases: &["PrintBalance"],
        takes: Takes::Account(PromptCommand::Balance),
        what: "an account's balance on every server of its cluster",
    },
    Spec {
        name: "log",
        aliases: &["PrintLog", "PrintDatastore"],
        takes: Takes::Server(PromptCommand::Log),
        what: "a server's committed transactions, in log order",
    },
    Spec {
        name: "db",
        aliases: &["PrintDB"],
        takes: Takes::Nothing(PromptCommand::Db),
        what: "every account that the last set's transfers name, on all servers",
    },
    Spec {
        name: "performance",
        aliases: &["PrintPerformance"],
        takes: Takes::Nothing(PromptCommand::Performance),
        what: "throughput, latencies, outcomes, and what each server did",
    },
    Spec {
        name: "views",
        aliases: &["PrintView", "PrintViews"],
        takes: Takes::Nothing(PromptCommand::Views),
        what: "the elections so far",
    },
    Spec {
        name: "fail",
        aliases: &["F"],
        takes: Takes::Server(PromptCommand::Fail),
        what: "cut a server off; its memory and disk stay",
    },
    Spec {
        name: "recover",
        aliases: &["R"],
        takes: Takes::Server(PromptCommand::Recover),
        what: "reconnect a server; it catches up",
    },
    Spec {
        name: "crash",
        aliases: &[],
        takes: Takes::Server(PromptCommand::Crash),
        what: "drop a server's thread and memory",
    },
    Spec {
        name: "restart",
        aliases: &[],
        takes: Takes::Server(PromptCommand::Restart),
        what: "start a crashed server from its directory alone",
    },
    Spec {
        name: "transfer",
        aliases: &[],
        takes: Takes::Transfer(PromptCommand::Transfer),
        what: "move X units from account A to account B",
    },
    Spec {
        name: "save",
        aliases: &[],
        takes: Takes::File(PromptCommand::Save),
        what: "write all tables of the last set to a file, with every row",
    },
    Spec { name: "help", aliases: &["?"], takes: Takes::Nothing(PromptCommand::Help), what: "this list" },
    Spec {
        name: "quit",
        aliases: &["exit"],
        takes: Takes::Nothing(PromptCommand::Quit),
        what: "leave; servers that this started stop; Ctrl-C and Ctrl-D do the same",
    },
];

impl Spec {
    fn usage(&self) -> String {
        let argument = match self.takes {
            Takes::Nothing(_) => "",
            Takes::Account(_) => " A",
            Takes::Server(_) => " S",
            Takes::Transfer(_) => " A B X",
            Takes::File(_) => " FILE",
        };
        format!("{}{argument}", self.name)
    }

    fn names(&self) -> impl Iterator<Item = &'static str> + use<> {
        [self.name].into_iter().chain(self.aliases.iter().copied())
    }
}

/// Reads one line; `None` when it is empty. An error is one line that says what is wrong and what is accepted.
pub fn parse(line: &str, topology: &Topology) -> Result<Option<PromptCommand>, String> {
    let line = line.trim();
    if line.is_empty() {
        return Ok(None);
    }
    let (name, argument) = split_name(line);
    let Some(spec) = find(name) else {
        let names: Vec<&str> = COMMANDS.iter().map(|spec| spec.name).collect();
        return Err(format!("unknown command {}; accepted: {}", quoted(name), names.join(", ")));
    };
    let argument = argument.trim();
    let parsed = match &spec.takes {
        Takes::Nothing(command) if words(argument).is_empty() => Ok(command.clone()),
        Takes::Nothing(_) => Err(format!("nothing may follow it, got {}", quoted(argument))),
        Takes::Account(make) => parse_existing_account(argument, topology).map(make),
        Takes::Server(make) => parse_server(argument, topology).map(make),
        Takes::Transfer(make) => parse_transfer(argument).map(make),
        Takes::File(make) => parse_file(argument).map(make),
    };
    parsed.map(Some).map_err(|why| format!("{}: {why}", spec.usage()))
}

/// All commands, as a table.
pub fn help() -> String {
    let mut table = tables::table(&["command", "also", "what it does"]);
    for spec in COMMANDS {
        table.add_row([spec.usage(), spec.aliases.join(", "), spec.what.to_string()]);
    }
    format!(
        "{table}\nA, B: accounts; X: units; S: a server, as S3, n3 or 3. PrintBalance(100) and the like work too."
    )
}

fn find(name: &str) -> Option<&'static Spec> {
    COMMANDS.iter().find(|spec| spec.names().any(|known| known.eq_ignore_ascii_case(name)))
}

fn split_name(line: &str) -> (&str, &str) {
    line.split_at(line.find(|c: char| c.is_whitespace() || c == '(').unwrap_or(line.len()))
}

/// The arguments in `100 501 8` as in `(100, 501, 8)`.
fn words(argument: &str) -> Vec<&str> {
    let inner = argument.strip_prefix('(').and_then(|rest| rest.strip_suffix(')')).unwrap_or(argument);
    inner.split(|c: char| c == ',' || c.is_whitespace()).filter(|word| !word.is_empty()).collect()
}

fn parse_existing_account(argument: &str, topology: &Topology) -> Result<AccountId, String> {
    let account = match words(argument)[..] {
        [word] => parse_account(word).ok().filter(|account| topology.shard_of(*account).is_some()),
        _ => None,
    };
    account.ok_or_else(|| format!("A is an account, 1 to {}, got {}", topology.accounts, quoted(argument)))
}

fn parse_server(argument: &str, topology: &Topology) -> Result<NodeId, String> {
    let server = match words(argument)[..] {
        [word] => {
            let digits = word.strip_prefix(['S', 's', 'N', 'n']).unwrap_or(word);
            let number = digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok()).flatten();
            number.map(NodeId).filter(|server| topology.contains_server(*server))
        }
        _ => None,
    };
    server
        .ok_or_else(|| format!("S is a server, S1 to S{}, got {}", topology.server_count(), quoted(argument)))
}

fn parse_transfer(argument: &str) -> Result<Transfer, String> {
    let [from, to, amount] = words(argument)[..] else {
        return Err(format!(
            "three numbers are needed, as in `transfer 100 501 8`, got {}",
            quoted(argument)
        ));
    };
    let amount =
        amount.parse().map_err(|_| format!("X is an integer of at most 64 bits, got {}", quoted(amount)))?;
    Ok(Transfer { from: parse_account(from)?, to: parse_account(to)?, amount })
}

/// Any account number: whether the bank holds it is for the servers to say.
fn parse_account(word: &str) -> Result<AccountId, String> {
    let is_number = word.bytes().all(|b| b.is_ascii_digit());
    let number = is_number.then(|| word.parse().ok()).flatten();
    number
        .map(AccountId)
        .ok_or_else(|| format!("A and B are accounts, numbers of at most 64 bits, got {}", quoted(word)))
}

/// The rest of the line, because names of files may hold blanks; quotes around it are dropped.
fn parse_file(argument: &str) -> Result<PathBuf, String> {
    let unquoted = ['"', '\'']
        .into_iter()
        .find_map(|quote| argument.strip_prefix(quote).and_then(|rest| rest.strip_suffix(quote)))
        .unwrap_or(argument);
    if unquoted.is_empty() {
        return Err("the name of the file to write is missing".to_string());
    }
    Ok(PathBuf::from(unquoted))
}

/// What was typed, short and on one line whatever it holds.
fn quoted(text: &str) -> String {
    const LONGEST: usize = 40;
    let start: String = text.chars().take(LONGEST).collect();
    let more = if start.len() < text.len() { "…" } else { "" };
    format!("`{}{more}`", start.escape_debug())
}

/// The line editor. Where standard input is not a terminal it reads plain lines and shows no prompt.
pub struct Prompt {
    editor: Editor<Words, MemHistory>,
    topology: Topology,
}

impl Prompt {
    pub fn new(topology: Topology) -> io::Result<Prompt> {
        let config = Config::builder().completion_type(CompletionType::List).auto_add_history(true).build();
        let mut editor = Editor::with_history(config, MemHistory::new()).map_err(into_io)?;
        editor.set_helper(Some(Words { topology, files: FilenameCompleter::new() }));
        Ok(Prompt { editor, topology })
    }

    /// Asks until a line is a command, saying on standard error what is wrong with the others. The end of the input
    /// and Ctrl-C mean [`PromptCommand::Quit`].
    pub fn read(&mut self, prompt: &str) -> io::Result<PromptCommand> {
        loop {
            match self.editor.readline(prompt) {
                Ok(line) => match parse(&line, &self.topology) {
                    Ok(Some(command)) => return Ok(command),
                    Ok(None) => {}
                    Err(why) => eprintln!("{why}"),
                },
                Err(ReadlineError::Eof | ReadlineError::Interrupted) => return Ok(PromptCommand::Quit),
                // The window changed its size: the line is asked for again.
                Err(ReadlineError::Signal(_)) => {}
                Err(error) => return Err(into_io(error)),
            }
        }
    }
}

fn into_io(error: ReadlineError) -> io::Error {
    match error {
        ReadlineError::Io(error) => error,
        other => io::Error::other(other),
    }
}

/// What may stand at the end of `typed`, and where the word that it replaces begins. Names of files are not its affair.
pub fn completions(typed: &str, topology: &Topology) -> (usize, Vec<String>) {
    let is_break = |c: char| c.is_whitespace() || c == '(';
    let start = typed.char_indices().rfind(|(_, c)| is_break(*c)).map_or(0, |(at, c)| at + c.len_utf8());
    let (before, word) = typed.split_at(start);
    let begins = |name: &str| name.get(..word.len()).is_some_and(|head| head.eq_ignore_ascii_case(word));
    if before.trim().is_empty() {
        // An alias is offered only to those who began to type it.
        let offered = if word.is_empty() { 1 } else { usize::MAX };
        let names = COMMANDS.iter().flat_map(|spec| spec.names().take(offered));
        let longer = names.filter(|name| begins(name) && name.len() > word.len());
        return (start, longer.map(String::from).collect());
    }
    let (name, _) = split_name(before.trim_start());
    let takes_server = find(name).is_some_and(|spec| matches!(spec.takes, Takes::Server(_)));
    let servers = topology.servers().filter(|_| takes_server).map(|server| server.to_string());
    (start, servers.filter(|name| begins(name)).collect())
}

#[derive(Helper, Highlighter, Hinter, Validator)]
struct Words {
    topology: Topology,
    files: FilenameCompleter,
}

impl Completer for Words {
    type Candidate = Pair;

    fn complete(
        &self,
        line: &str,
        at: usize,
        context: &Context<'_>,
    ) -> rustyline::Result<(usize, Vec<Pair>)> {
        let typed = &line[..at];
        let (name, rest) = split_name(typed.trim_start());
        let takes_file = find(name).is_some_and(|spec| matches!(spec.takes, Takes::File(_)));
        if takes_file && !rest.is_empty() {
            return self.files.complete(line, at, context);
        }
        let (start, words) = completions(typed, &self.topology);
        Ok((start, words.into_iter().map(|word| Pair { display: word.clone(), replacement: word }).collect()))
    }
}
