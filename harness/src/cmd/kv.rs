//! `harness kv`: uses and administers the cluster of a key-value run from outside.

use std::io::{BufRead as _, IsTerminal as _};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use replication::transport::Transport as _;
use replication::transport::quic::QuicTransport;
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;
use workloads::keyvalue::client::Settings;
use workloads::keyvalue::load::Load;
use workloads::keyvalue::{Client, Delivery, Freshness};

use super::print;
use crate::cli::{KvArgs, KvCommand};
use crate::exit::{Exit, print_error};
use crate::kv::cluster::ClusterAddress;
use crate::kv::load::{Clients, Cluster, News, Order};
use crate::kv::prompt::{Action, HELP};
use crate::kv::record::{Figures, per_second};
use crate::units::show_ns;

pub(super) fn run(args: &KvArgs) -> anyhow::Result<Exit> {
    let action = args.command.as_ref().map(KvCommand::action).transpose()?;
    let clients = args.command.as_ref().and_then(|command| match command {
        KvCommand::Load { clients } => *clients,
        _ => None,
    });
    let cluster = ClusterAddress::read(&args.cluster)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(async {
        let mut session = Session::open(args, cluster).await?;
        let exit = match action {
            None => prompt(&mut session).await,
            Some(None) => load(&mut session, clients).await,
            Some(Some(action)) => {
                print(session.perform(&action).await?.as_bytes())?;
                Ok(Exit::Success)
            }
        };
        session.transport.close().await;
        exit
    })
}

/// A client of the cluster that a file names.
struct Session<'a> {
    args: &'a KvArgs,
    cluster: ClusterAddress,
    transport: Arc<QuicTransport>,
    client: Client,
}

impl<'a> Session<'a> {
    async fn open(args: &'a KvArgs, cluster: ClusterAddress) -> anyhow::Result<Self> {
        let transport = cluster.reach().await?;
        let settings = Settings {
            attempt: Duration::from_secs(2),
            patience: args.timeout.0,
            freshness: Freshness::Index,
            delivery: Delivery::ExactlyOnce,
        };
        let client = Client::new(transport.clone(), cluster.ids(), 0, settings);
        Ok(Self { args, cluster, transport, client })
    }

    async fn perform(&mut self, action: &Action) -> anyhow::Result<String> {
        action.perform(&mut self.client, &self.cluster.ids()).await
    }

    /// Follows the file, if nodes came or went.
    async fn follow(&mut self) -> anyhow::Result<()> {
        let Ok(now) = ClusterAddress::read(&self.args.cluster) else { return Ok(()) };
        if now.ids() != self.cluster.ids() {
            let before = std::mem::replace(self, Self::open(self.args, now).await?);
            before.transport.close().await;
        }
        Ok(())
    }
}

/// Where commands are typed.
enum Input {
    /// By a person, who can edit the line and have earlier ones back.
    Person(Box<DefaultEditor>),
    /// By a program, one a line.
    Program,
}

impl Input {
    /// The next line; none: there is no other.
    fn next(&mut self) -> anyhow::Result<Option<String>> {
        let failed = "cannot read the commands";
        match self {
            Self::Person(editor) => loop {
                match editor.readline("kv> ") {
                    Ok(line) => {
                        editor.add_history_entry(&line).context(failed)?;
                        return Ok(Some(line));
                    }
                    // Ctrl-C drops the line.
                    Err(ReadlineError::Interrupted) => {}
                    Err(ReadlineError::Eof) => return Ok(None),
                    Err(error) => return Err(error).context(failed),
                }
            },
            Self::Program => {
                let mut line = String::new();
                let read = std::io::stdin().lock().read_line(&mut line).context(failed)?;
                Ok((read > 0).then_some(line))
            }
        }
    }
}

/// One command after another, until the input ends. The exit code tells whether one failed, unless a person saw it.
async fn prompt(session: &mut Session<'_>) -> anyhow::Result<Exit> {
    let person = std::io::stdin().is_terminal();
    let mut input = Input::Program;
    if person {
        print(format!("{HELP}\n").as_bytes())?;
        input = Input::Person(Box::new(DefaultEditor::new().context("cannot use the terminal")?));
    }
    let mut exit = Exit::Success;
    while let Some(line) = tokio::task::block_in_place(|| input.next())? {
        match perform(session, &line).await {
            Ok(true) => {}
            Ok(false) => break,
            Err(error) => {
                print_error(&error);
                exit = if person { Exit::Success } else { Exit::Failed };
            }
        }
    }
    Ok(exit)
}

/// Does what a line says; returns whether there is more to come.
async fn perform(session: &mut Session<'_>, line: &str) -> anyhow::Result<bool> {
    match Action::parse(line).map_err(anyhow::Error::msg)? {
        None => Ok(true),
        Some(Action::Quit) => Ok(false),
        Some(action) => {
            action.check()?;
            session.follow().await?;
            print(session.perform(&action).await?.as_bytes())?;
            Ok(true)
        }
    }
}

/// Runs the clients of the test that the cluster is configured for, from this host: as many as it says, or `clients`.
async fn load(session: &mut Session<'_>, clients: Option<u32>) -> anyhow::Result<Exit> {
    let configuration = session.client.configuration().await?;
    let configured: Load =
        serde_json::from_str(&configuration).context("the cluster's configuration of the test")?;
    let load = Load { clients: clients.unwrap_or(configured.clients), ..configured };
    anyhow::ensure!(
        load.clients > 0,
        "the cluster's test has no clients of its own: say how many with --clients"
    );
    let mut clients = Clients::start(load, Cluster::new(session.cluster.clone()))?;
    let mut begin_ns = 0;
    loop {
        let next = match clients.news.recv().await.context("the clients ended")? {
            News::Connected => Order::Fill,
            News::Filled => Order::Load,
            News::Ended => Order::Verify,
            News::Begins { at_ns } => {
                begin_ns = at_ns;
                continue;
            }
            News::Failed { reason } => anyhow::bail!(reason),
            News::Verified { history, .. } => {
                let figures = Figures::of(&history, begin_ns);
                let latency = figures.latency;
                let text = format!(
                    "{} operations by {} clients in {}: {} per second, p50 {}, p99 {}, {} failed, {} unknown\n",
                    figures.operations,
                    load.clients,
                    show_ns(figures.load_ns),
                    per_second(latency.count, figures.load_ns),
                    show_ns(latency.p50_ns),
                    show_ns(latency.p99_ns),
                    figures.failed,
                    figures.unknown
                );
                print(text.as_bytes())?;
                return Ok(Exit::Success);
            }
        };
        let _ = clients.orders.send(next);
    }
}
