//! `bank run`, `bank node` and the prompt of `bank client`: what the two commands do from their arguments to their exit codes.

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam::channel::{Receiver, bounded};
use mio::net::TcpListener;
use parking_lot::Mutex;

use crate::config::{Keep, Settings, Topology};
use crate::net::{Address, listen_at};
use crate::report::json::Json;
use crate::report::prompt::{Prompt, PromptCommand, help};
use crate::report::{SetReport, tables};
use crate::runtime::clock::Clock;
use crate::runtime::cluster::{
    Blank, Cluster, DataDir, Fleet, Processes, Threading, open_log, prepare, remove_server_dirs,
};
use crate::runtime::config_file;
use crate::runtime::conns::{Door, Endpoints};
use crate::runtime::gates::affordable;
use crate::runtime::http::{self, Http, Pages};
use crate::runtime::node::{self, Control, poll_and_waker};
use crate::runtime::runner::{Factory, Options, Runner, Stop};
use crate::runtime::status::Status;
use crate::testset::{Command, Row, Set, parse};
use crate::types::{NodeId, ShardId, Transfer};

/// Arguments of `bank run`.
pub struct RunArgs {
    pub file: PathBuf,
    pub topology: Topology,
    pub options: Options,
    pub keep: Keep,
    pub data_dir: Option<PathBuf>,
    pub fresh: bool,
    /// Servers that run elsewhere, instead of own ones.
    pub config: Option<PathBuf>,
    pub interactive: bool,
    pub json: bool,
}

/// Arguments of `bank node`.
pub struct NodeArgs {
    pub config: PathBuf,
    pub server: String,
    pub data_dir: PathBuf,
    pub format: bool,
    pub rejoin: bool,
    /// The host to listen on, if it is not the one that others know it by.
    pub listen: Option<String>,
    /// Where to write the number of this process once it listens.
    pub pid_file: Option<PathBuf>,
}

/// How the process ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exit {
    Success = 0,
    /// Something broke that should not.
    Failure = 1,
    /// A file, flag or directory cannot be used; nothing was started or changed.
    Usage = 2,
    /// All sets ran, but the outcome of a transfer stayed unknown.
    Unknown = 3,
    Interrupted = 130,
}

/// Runs a set file and says how the process should end. Errors have been printed.
pub fn run(args: RunArgs) -> Exit {
    let interrupt = match on_interrupt() {
        Ok(interrupt) => interrupt,
        Err(e) => return refuse(&e),
    };
    let (mut runner, sets) = match prepare_run(&args, interrupt) {
        Ok(prepared) => prepared,
        Err((exit, what)) => {
            eprintln!("error: {what}");
            return exit;
        }
    };
    let result =
        if args.interactive { interact(&mut runner, &sets) } else { run_all(&mut runner, &sets, args.json) };
    conclude(&runner, result)
}

/// The prompt alone, on servers that run elsewhere and are left as they are.
pub fn prompt(config: &Path) -> Exit {
    let attached = || {
        let config = config_file::load(config)?;
        let interrupt = on_interrupt()?;
        let options = Options { in_flight: 1, race: false, reset_each_set: false, progress: false };
        let factory: Factory =
            Box::new(move || Ok(Box::new(Processes::attach(config.clone())?) as Box<dyn Fleet>));
        Runner::new(factory, options, Some(interrupt)).map_err(|stop| match stop {
            Stop::Failed(what) => what,
            Stop::Interrupted => "interrupted".into(),
        })
    };
    match attached() {
        Err(what) => refuse(&what),
        Ok(mut runner) => {
            let result = interact(&mut runner, &[]);
            conclude(&runner, result)
        }
    }
}

fn conclude(runner: &Runner, result: Result<(), Ended>) -> Exit {
    match result {
        Ok(()) if runner.has_unknown() => Exit::Unknown,
        Ok(()) => Exit::Success,
        Err(Ended::Stop(Stop::Interrupted)) => Exit::Interrupted,
        Err(Ended::Stop(Stop::Failed(what))) => {
            eprintln!("error: {what}");
            Exit::Failure
        }
        // Whoever read the output has seen enough.
        Err(Ended::Output(e)) if e.kind() == io::ErrorKind::BrokenPipe => Exit::Success,
        Err(Ended::Output(e)) => {
            eprintln!("error: standard output cannot be written: {e}");
            Exit::Failure
        }
    }
}

pub(super) fn refuse(what: &str) -> Exit {
    eprintln!("error: {what}");
    Exit::Usage
}

enum Ended {
    Stop(Stop),
    Output(io::Error),
}

impl From<Stop> for Ended {
    fn from(stop: Stop) -> Ended {
        Ended::Stop(stop)
    }
}

impl From<io::Error> for Ended {
    fn from(e: io::Error) -> Ended {
        Ended::Output(e)
    }
}

pub fn on_interrupt() -> Result<Receiver<()>, String> {
    let (send, interrupt) = bounded(1);
    ctrlc::set_handler(move || _ = send.try_send(()))
        .map_err(|e| format!("Ctrl-C cannot be handled: {e}"))?;
    Ok(interrupt)
}

/// Everything that can be refused is refused here, before anything is started or changed.
fn prepare_run(args: &RunArgs, interrupt: Receiver<()>) -> Result<(Runner, Vec<Set>), (Exit, String)> {
    let usage = |what: String| (Exit::Usage, what);
    let name = args.file.display().to_string();
    let config = args.config.as_deref().map(config_file::load).transpose().map_err(usage)?;
    let topology = config.as_ref().map_or(args.topology, |c| c.context.topology);
    topology.validate().map_err(usage)?;
    let bytes = std::fs::read(&args.file).map_err(|e| usage(format!("{name}: cannot be read: {e}")))?;
    let file = parse(&name, &bytes, &topology).map_err(|e| usage(e.to_string()))?;
    let unknown = file.unknown_accounts(&topology);
    if let Some(first) = unknown.first() {
        eprintln!(
            "warning: {name}: names {} accounts beyond 1 to {}, such as {first}; their transactions abort with \
             unknown-account (see --accounts)",
            unknown.len(),
            topology.accounts
        );
    }
    if args.options.reset_each_set && (args.data_dir.is_some() || args.config.is_some()) {
        return Err(usage(
            "--reset-each-set: goes with servers in temporary directories only, neither with \
             --data-dir nor with --config"
                .into(),
        ));
    }
    if args.fresh
        && let Some(dir) = &args.data_dir
    {
        remove_server_dirs(dir).map_err(|e| usage(format!("--data-dir: {e}")))?;
    }
    args.keep.validate().map_err(|e| usage(format!("--{}", e.replacen('_', "-", 1))))?;
    let settings = Settings { keep: args.keep, ..Settings::default() };
    let data_dir = args.data_dir.clone();
    let factory: Factory = match config {
        Some(config) => Box::new(move || Ok(Box::new(Processes::connect(config.clone())?) as Box<dyn Fleet>)),
        None => Box::new(move || {
            let data = match &data_dir {
                Some(dir) => DataDir::Kept(dir.clone()),
                None => DataDir::temporary()?,
            };
            let place = place_of(&data);
            let cluster = Cluster::start(topology, settings, data)?;
            eprintln!("data directory: {place}");
            Ok(Box::new(cluster) as Box<dyn Fleet>)
        }),
    };
    let runner = Runner::new(factory, args.options, Some(interrupt)).map_err(|stop| match stop {
        Stop::Failed(what) => (Exit::Usage, what),
        Stop::Interrupted => (Exit::Interrupted, "interrupted".into()),
    })?;
    Ok((runner, file.sets))
}

fn place_of(data: &DataDir) -> String {
    let path = data.path().display();
    match data {
        DataDir::Kept(_) => path.to_string(),
        DataDir::Temporary(dir) => {
            let kind = if is_tmpfs(dir.path()) { "a tmpfs, so syncs cost nothing" } else { "on disk" };
            format!("{path} (temporary, {kind}, removed at the end)")
        }
    }
}

/// Whether a path lies in memory: syncing there says nothing about a disk.
fn is_tmpfs(path: &Path) -> bool {
    use std::os::unix::ffi::OsStrExt;
    let Ok(path) = std::ffi::CString::new(path.as_os_str().as_bytes()) else { return false };
    let mut info = std::mem::MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: the path is a terminated string, and statfs fills the whole structure when it returns 0.
    unsafe {
        libc::statfs(path.as_ptr(), info.as_mut_ptr()) == 0
            && info.assume_init().f_type == libc::TMPFS_MAGIC as libc::__fsword_t
    }
}

fn say(text: &str) -> Result<(), Ended> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}")?;
    out.flush()?;
    Ok(())
}

fn run_all(runner: &mut Runner, sets: &[Set], as_json: bool) -> Result<(), Ended> {
    for set in sets {
        let report = runner.run_set(set)?;
        if as_json {
            let mut out = io::BufWriter::new(io::stdout().lock());
            serde_json::to_writer(&mut out, &Json(&report)).map_err(io::Error::from)?;
            writeln!(out)?;
            out.flush()?;
        } else {
            say(&after_set(runner, &report))?;
        }
    }
    Ok(())
}

/// What is shown after a set when nobody asks for more.
fn after_set(runner: &Runner, report: &SetReport) -> String {
    let parts = [
        tables::summary(report),
        tables::results(report, tables::Rows::Abridged),
        tables::resolved(report),
        tables::modified(report, tables::Rows::Abridged),
        tables::performance(&report.performance, Some(runner.whole_run())),
    ];
    parts.into_iter().filter(|p| !p.is_empty()).collect::<Vec<_>>().join("\n\n") + "\n"
}

// ---- the prompt ----

fn interact(runner: &mut Runner, sets: &[Set]) -> Result<(), Ended> {
    let mut prompt = Prompt::new(*runner.topology())?;
    let mut next = 0;
    let mut last: Option<SetReport> = None;
    say(&match sets.len() {
        0 => "`transfer A B X` moves money, `help` lists what else can be said".into(),
        count => format!("{count} sets; `next` runs the first, `help` lists what else can be said"),
    })?;
    loop {
        let waiting = match sets.get(next) {
            Some(set) => format!("bank (next: set {})> ", set.number),
            None if sets.is_empty() => "bank> ".into(),
            None => "bank (no sets left)> ".into(),
        };
        let command = prompt.read(&waiting)?;
        let answer = match command {
            PromptCommand::Quit => return Ok(()),
            PromptCommand::Help => help(),
            PromptCommand::Next | PromptCommand::Skip if next == sets.len() => {
                "no set is left; `quit` ends, `transfer A B X` runs one more transaction".into()
            }
            PromptCommand::Skip => {
                next += 1;
                format!("set {} is left out", sets[next - 1].number)
            }
            PromptCommand::Next => {
                next += 1;
                match runner.run_set(&sets[next - 1]) {
                    Ok(report) => {
                        let shown = [
                            tables::summary(&report),
                            tables::results(&report, tables::Rows::Abridged),
                            tables::resolved(&report),
                        ];
                        last = Some(report);
                        shown.join("\n").trim_end().to_string()
                    }
                    Err(stop) => carry_on(stop)?,
                }
            }
            command => match obey(runner, command, &mut last) {
                Ok(text) => text,
                Err(stop) => carry_on(stop)?,
            },
        };
        say(&answer)?;
    }
}

/// What failed may have been asked at the wrong time: it is said, and the session goes on.
fn carry_on(stop: Stop) -> Result<String, Ended> {
    match stop {
        Stop::Failed(what) => Ok(format!("error: {what}")),
        Stop::Interrupted => Err(stop.into()),
    }
}

fn obey(runner: &mut Runner, command: PromptCommand, last: &mut Option<SetReport>) -> Result<String, Stop> {
    let none = || "no set has run yet".to_string();
    Ok(match command {
        PromptCommand::Balance(account) => {
            let table = runner.balances([account])?;
            let states = runner.states();
            let Some(held) = table.get(&account) else { return Ok(format!("there is no account {account}")) };
            let shard = shard_of(runner, account);
            let rows: Vec<_> = states
                .into_iter()
                .filter_map(|(server, state)| Some((server, state, *held.get(&server)?)))
                .collect();
            tables::balance(account, shard, &rows)
        }
        PromptCommand::Log(server) => tables::log(server, &runner.log(server)?),
        PromptCommand::Db => match last {
            Some(report) => {
                // What the servers hold now, not what they held when the set ended.
                report.modified = runner.balances(report.modified.keys().copied().collect::<Vec<_>>())?;
                report.performance.servers = runner.server_rows();
                tables::modified(report, tables::Rows::All)
            }
            None => none(),
        },
        PromptCommand::Performance => match last {
            Some(report) => {
                report.performance.servers = runner.server_rows();
                tables::performance(&report.performance, Some(runner.whole_run()))
            }
            None => none(),
        },
        PromptCommand::Views => tables::views(&runner.views()),
        PromptCommand::Fail(server) => done(runner.fail(server), server, "has failed: its cable is pulled")?,
        PromptCommand::Recover(server) => done(runner.recover(server), server, "is back")?,
        PromptCommand::Crash(server) => {
            done(runner.crash(server), server, "has crashed: only its disk is left")?
        }
        PromptCommand::Restart(server) => done(runner.restart(server), server, "runs again, from its disk")?,
        PromptCommand::Transfer(transfer) => {
            let report = runner.run_set(&single(runner, transfer))?;
            let text = tables::results(&report, tables::Rows::All);
            *last = Some(report);
            text
        }
        PromptCommand::Save(path) => match last {
            Some(report) => match std::fs::write(&path, tables::everything(report) + "\n") {
                Ok(()) => format!("saved to {}", path.display()),
                Err(e) => format!("error: {}: cannot be written: {e}", path.display()),
            },
            None => none(),
        },
        PromptCommand::Next | PromptCommand::Skip | PromptCommand::Help | PromptCommand::Quit => {
            String::new()
        }
    })
}

fn done(result: Result<(), Stop>, server: NodeId, what: &str) -> Result<String, Stop> {
    result.map(|()| format!("{server} {what}"))
}

fn shard_of(runner: &Runner, account: crate::types::AccountId) -> ShardId {
    runner.topology().shard_of(account).unwrap_or(ShardId(1))
}

/// A set of one transfer, on the servers as they are.
fn single(runner: &Runner, transfer: Transfer) -> Set {
    let up = |(server, state)| (state == crate::report::ServerState::Live).then_some(server);
    Set {
        number: 0,
        line: 0,
        live: runner.states().into_iter().filter_map(up).collect(),
        contacts: Vec::new(),
        rows: vec![Row { line: 0, command: Command::Transfer(transfer) }],
    }
}

/// Whether somebody sits in front of it.
pub fn at_terminal() -> bool {
    io::stdin().is_terminal() && io::stdout().is_terminal()
}

// ---- one server as a process ----

/// Runs one server until it is told to stop. Errors have been printed.
pub fn node(args: NodeArgs) -> Exit {
    match start_node(args) {
        Ok(Ok(())) => Exit::Success,
        Ok(Err(e)) => {
            eprintln!("error: the server has stopped for good: {e}");
            Exit::Failure
        }
        Err(what) => refuse(&what),
    }
}

/// Serves the HTTP pages of a server, if it has an address for them.
fn serve_pages(
    address: Option<&Address>,
    host: Option<&str>,
    status: Arc<Mutex<Status>>,
    topology: &Topology,
    clock: Clock,
) -> Result<Option<Http>, String> {
    let Some(address) = address else { return Ok(None) };
    let address = host.map_or(Ok(address.clone()), |host| address.with_host(host))?;
    let serve = |found| http::serve(found, Pages::new(status.clone(), topology, clock));
    address.first(serve).map(Some).map_err(|e| e.to_string())
}

/// Binds where a server listens, and says where that is.
fn open_doors(
    endpoints: &Endpoints,
    host: Option<&str>,
) -> Result<(Vec<(TcpListener, Door)>, String), String> {
    let open = |address: &Address| {
        let address = host.map_or(Ok(address.clone()), |host| address.with_host(host))?;
        listen_at(&address).map_err(|e| e.to_string())
    };
    let (listener, peer) = open(&endpoints.peer)?;
    if endpoints.peer == endpoints.client {
        return Ok((vec![(listener, Door::Anybody)], peer.to_string()));
    }
    let (clients, client) = open(&endpoints.client)?;
    let place = format!("{client} for clients, and on {peer} for servers");
    Ok((vec![(listener, Door::Peers), (clients, Door::Clients)], place))
}

fn start_node(args: NodeArgs) -> Result<io::Result<()>, String> {
    let config = config_file::load(&args.config)?;
    let topology = config.context.topology;
    let server = config_file::parse_server(&args.server, &topology).map_err(|e| format!("--server: {e}"))?;
    let endpoints = config.context.addresses[&server].clone();
    let (doors, place) =
        open_doors(&endpoints, args.listen.as_deref()).map_err(|e| format!("{server}: {e}"))?;
    let id = config.context.cluster_id;
    let blank = match (args.format, args.rejoin) {
        (true, _) => Blank::Found(id),
        (_, true) => Blank::Rejoin(id),
        _ => Blank::Refuse,
    };
    let log = open_log(&args.data_dir, server, topology, Some(id), blank)
        .map_err(|e| format!("--data-dir: {e}"))?;
    let (control, orders) = crossbeam::channel::unbounded();
    let (poll, waker) = poll_and_waker().map_err(|e| format!("{server}: no event loop: {e}"))?;
    let (stop, wake) = (control.clone(), waker.clone());
    let told = AtomicBool::new(false);
    ctrlc::set_handler(move || {
        // Who says it twice does not want to wait. The loop is gone only if the process is about to end anyway.
        let again = told.swap(true, Ordering::Relaxed);
        let _ = stop.send(if again { Control::Stop } else { Control::Leave });
        let _ = wake.wake();
    })
    .map_err(|e| format!("signals cannot be handled: {e}"))?;
    let around = Threading {
        poll,
        waker,
        doors,
        control: orders,
        status: Arc::new(Mutex::new(Status::new(server))),
        admin: config.allow_admin,
    };
    let (status, clock) = (around.status.clone(), Clock::start());
    let connections = affordable(config.settings.connections, 1, &topology);
    let settings = Settings { connections, ..config.settings };
    let setup = prepare(server, config.context, settings, clock, log, around)?;
    // Until the end of this function.
    let _http = serve_pages(endpoints.admin.as_ref(), args.listen.as_deref(), status, &topology, clock)
        .map_err(|e| format!("{server}: {e}"))?;
    // Whoever comes so far has the directory's lock: nobody who runs is written over.
    if let Some(path) = &args.pid_file {
        let written = std::fs::write(path, format!("{}\n", std::process::id()));
        written.map_err(|e| format!("--pid-file {}: {e}", path.display()))?;
    }
    println!("{server} listens on {place}");
    let thread = std::thread::Builder::new()
        .name(server.to_string())
        .spawn(move || node::run(setup))
        .map_err(|e| format!("{server}: no thread: {e}"))?;
    let ended =
        thread.join().unwrap_or_else(|_| Err(io::Error::other("it panicked; the message stands above")));
    // Kept until here: a closed channel would stop the loop.
    drop(control);
    Ok(ended)
}
