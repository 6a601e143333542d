//! `harness kv`: uses and administers the cluster of a key-value run from outside.

use std::io::{BufRead as _, IsTerminal as _};
use std::time::Duration;

use anyhow::Context as _;
use replication::transport::Transport as _;
use workloads::keyvalue::client::Settings;
use workloads::keyvalue::load::Load;
use workloads::keyvalue::{Client, Delivery, Freshness};

use super::print;
use crate::cli::{KvArgs, KvCommand};
use crate::exit::{Exit, print_error};
use crate::kv::cluster::ClusterAddress;
use crate::kv::load::{Clients, News, Order};
use crate::kv::prompt::{Action, HELP};
use crate::kv::record::{Figures, per_second};
use crate::units::show_ns;

pub(super) fn run(args: &KvArgs) -> anyhow::Result<Exit> {
    let cluster = ClusterAddress::read(&args.cluster)?;
    let action = args.command.as_ref().map(KvCommand::action).transpose()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(async {
        let transport = cluster.reach().await?;
        let settings = Settings {
            attempt: Duration::from_secs(2),
            patience: args.timeout.0,
            freshness: Freshness::Index,
            delivery: Delivery::ExactlyOnce,
        };
        let mut client = Client::new(transport.clone(), cluster.ids(), 0, settings);
        let exit = match action {
            None => prompt(&mut client, &cluster).await,
            Some(None) => load(&mut client, cluster).await,
            Some(Some(action)) => {
                print(action.perform(&mut client, &cluster.ids()).await?.as_bytes())?;
                Ok(Exit::Success)
            }
        };
        transport.close().await;
        exit
    })
}

/// One command after another, until the input ends. The exit code tells whether one failed, unless a person saw it.
async fn prompt(client: &mut Client, cluster: &ClusterAddress) -> anyhow::Result<Exit> {
    let (nodes, person) = (cluster.ids(), std::io::stdin().is_terminal());
    let invite = |text: &str| if person { print(text.as_bytes()) } else { Ok(()) };
    invite(&format!("{HELP}\n"))?;
    let mut exit = Exit::Success;
    loop {
        invite("kv> ")?;
        let mut line = String::new();
        let read = tokio::task::block_in_place(|| std::io::stdin().lock().read_line(&mut line));
        if read.context("cannot read the commands")? == 0 {
            return Ok(exit);
        }
        match perform(client, &nodes, &line).await {
            Ok(true) => {}
            Ok(false) => return Ok(exit),
            Err(error) => {
                print_error(&error);
                exit = if person { Exit::Success } else { Exit::Failed };
            }
        }
    }
}

/// Does what a line says; returns whether there is more to come.
async fn perform(client: &mut Client, nodes: &[replication::NodeId], line: &str) -> anyhow::Result<bool> {
    match Action::parse(line).map_err(anyhow::Error::msg)? {
        None => Ok(true),
        Some(Action::Quit) => Ok(false),
        Some(action) => {
            print(action.perform(client, nodes).await?.as_bytes())?;
            Ok(true)
        }
    }
}

/// Runs the clients of the test that the cluster is configured for, from this host.
async fn load(client: &mut Client, cluster: ClusterAddress) -> anyhow::Result<Exit> {
    let configuration = client.configuration().await?;
    let load: Load =
        serde_json::from_str(&configuration).context("the cluster's configuration of the test")?;
    anyhow::ensure!(load.clients > 0, "the cluster's test has no clients: give its run --clients");
    let mut clients = Clients::start(load, cluster)?;
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
