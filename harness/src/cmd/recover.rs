//! `harness recover`: what a survivor's store holds, and a new cluster from it.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use replication::{NodeId, Storage, StorageError, Survivor};

use super::print;
use crate::cli::RecoverArgs;
use crate::disk::{CLUSTER_FILE, Label};
use crate::exit::{Exit, Usage};
use crate::plan::{DiskStore, majority_of};
use crate::run::cluster::list;

/// What was found of one node.
enum Found {
    Missing,
    /// Another process has it open.
    Living,
    Unusable(StorageError),
    /// It never belonged to a group.
    Empty,
    Readable(Box<Survivor>),
}

/// A folder of stores and what is in it.
struct Old {
    label: Label,
    nodes: Vec<(NodeId, Found)>,
}

pub(super) fn run(args: &RecoverArgs) -> anyhow::Result<Exit> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().build().context("cannot start the runtime")?;
    runtime.block_on(recover(args))
}

async fn recover(args: &RecoverArgs) -> anyhow::Result<Exit> {
    let (folder, chosen) = source(args)?;
    let old = look(args, &folder).await?;
    refuse_living(args, &old)?;
    let (node, survivor) = choose(args, &old, chosen)?;
    print(describe(&old, node, survivor).as_bytes())?;
    let Some(to) = args.to.as_ref().filter(|_| args.accept_loss) else { return Ok(Exit::Success) };
    write(to, &old, node, survivor).await?;
    print(
        format!(
            "the stores of a new cluster are in {0}; continue with: harness run --resume RESULTS_DIR --store {0}\n",
            to.display()
        )
        .as_bytes(),
    )?;
    Ok(Exit::Success)
}

fn refusal(args: &RecoverArgs, wrong: impl std::fmt::Display, remedy: &str) -> Usage {
    Usage::option("--from", args.from.display(), wrong, remedy)
}

/// The folder of the stores, and the node that was asked for, if one was.
fn source(args: &RecoverArgs) -> Result<(PathBuf, Option<NodeId>), Usage> {
    let from = &args.from;
    if from.is_dir() {
        let inner = from.join("store");
        let folder = if inner.join(CLUSTER_FILE).exists() { inner } else { from.clone() };
        return Ok((folder, None));
    }
    let name = from.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let id = name.strip_prefix("node-").and_then(|rest| rest.strip_suffix(".redb")?.parse().ok());
    match (from.is_file(), id) {
        (true, Some(id)) => {
            let parent = from.parent().filter(|parent| !parent.as_os_str().is_empty());
            Ok((parent.unwrap_or_else(|| Path::new(".")).into(), Some(NodeId(id))))
        }
        _ => Err(refusal(args, "neither a store (node-N.redb) nor a folder", "name the survivor's store")),
    }
}

async fn look(args: &RecoverArgs, folder: &Path) -> anyhow::Result<Old> {
    let label = Label::read(folder)?.ok_or_else(|| {
        refusal(args, format_args!("there is no {CLUSTER_FILE} beside the stores"), "name a folder of stores")
    })?;
    if !label.backend.keeps_on_disk() {
        let wrong = format!("stores of {} are not recovered", label.backend);
        return Err(refusal(args, wrong, "name stores of a backend that keeps them on disk").into());
    }
    if label.members_change {
        let wrong = "nodes joined or left its cluster: which belong to it cannot be told";
        return Err(refusal(args, wrong, "use a store of a cluster whose nodes stayed the same").into());
    }
    let disk = DiskStore { dir: folder.into(), cluster: label.cluster.clone() };
    let mut nodes = Vec::new();
    for node in (1..=label.nodes).map(NodeId) {
        nodes.push((node, open(&disk, node).await));
    }
    Ok(Old { label, nodes })
}

async fn open(disk: &DiskStore, node: NodeId) -> Found {
    let file = disk.file(node);
    // Opening would make it.
    if !file.exists() {
        return Found::Missing;
    }
    let read = async {
        let storage = Storage::open(file)?;
        storage.identify(node, &disk.cluster).await?;
        let survivor = Survivor::read(&storage).await;
        storage.close().await;
        survivor
    };
    match read.await {
        Ok(Some(survivor)) => Found::Readable(Box::new(survivor)),
        Ok(None) => Found::Empty,
        Err(StorageError::InUse { .. }) => Found::Living,
        Err(error) => Found::Unusable(error),
    }
}

fn nodes_where(old: &Old, holds: impl Fn(&Found) -> bool) -> Vec<NodeId> {
    old.nodes.iter().filter(|(_, found)| holds(found)).map(|(node, _)| *node).collect()
}

/// Nobody takes the state of a cluster that runs.
fn refuse_living(args: &RecoverArgs, old: &Old) -> Result<(), Usage> {
    let living = nodes_where(old, |found| matches!(found, Found::Living));
    if living.is_empty() {
        return Ok(());
    }
    let there = nodes_where(old, |found| matches!(found, Found::Living | Found::Readable(_)));
    let (count, of) = (there.len(), old.nodes.len());
    if count >= majority_of(of) {
        let wrong =
            format!("{} of its cluster run, and a majority is there ({count} of {of})", list(&living));
        return Err(refusal(args, wrong, "nothing is to be recovered: let them go on"));
    }
    Err(refusal(args, format_args!("{} of its cluster run", list(&living)), "end them first"))
}

fn choose<'a>(
    args: &RecoverArgs,
    old: &'a Old,
    chosen: Option<NodeId>,
) -> anyhow::Result<(NodeId, &'a Survivor)> {
    let mut best: Option<(NodeId, &Survivor)> = None;
    for (node, found) in &old.nodes {
        match found {
            _ if chosen.is_some_and(|chosen| chosen != *node) => {}
            Found::Readable(survivor)
                if best.is_none_or(|(_, best)| survivor.position() > best.position()) =>
            {
                best = Some((*node, survivor));
            }
            Found::Unusable(error) if chosen.is_some() => return Err(error.clone().into()),
            _ => {}
        }
    }
    best.ok_or_else(|| {
        refusal(args, "no store in it can be recovered from", "name a survivor's store").into()
    })
}

fn describe(old: &Old, node: NodeId, survivor: &Survivor) -> String {
    let Label { cluster, backend, nodes, .. } = &old.label;
    let mut text = format!("cluster {cluster}: {backend}, {nodes} nodes\n");
    for (other, found) in &old.nodes {
        let words = match found {
            Found::Missing => "missing".into(),
            Found::Living => "in use".into(),
            Found::Unusable(error) => error.to_string(),
            Found::Empty => "belonged to no group yet".into(),
            Found::Readable(survivor) => {
                let (of, upto) = survivor.position();
                match **survivor {
                    Survivor::Raft(_) => format!("readable, log up to entry {upto} of term {of}"),
                    Survivor::Holder(_) => format!("readable, checkpoints up to round {upto} of epoch {of}"),
                }
            }
        };
        let _ = writeln!(text, "  node {other}: {words}");
    }
    let newest = survivor.newest();
    let newest = newest.map_or_else(
        || "no checkpoint".into(),
        |held| format!("checkpoint {}, digest {}", held.id, held.digest),
    );
    let _ = match survivor {
        Survivor::Raft(survivor) => {
            writeln!(text, "node {node} has {newest}; newest term seen: {}", survivor.term())
        }
        Survivor::Holder(_) => writeln!(text, "node {node} has {newest}"),
    };
    for id in survivor.lacking() {
        let _ = writeln!(text, "its bytes of checkpoint {id} are missing: that one is lost");
    }
    let beyond = match survivor {
        Survivor::Raft(_) => "after that and is not in its log",
        Survivor::Holder(_) => "by others without this node, after that or before",
    };
    let _ = writeln!(text, "lost is what was acknowledged {beyond}; which that is cannot be seen from here");
    let readable = nodes_where(old, |found| matches!(found, Found::Readable(_)));
    if readable.len() >= majority_of(old.nodes.len()) {
        let _ = writeln!(
            text,
            "{} can be read, which is a majority: `harness run --resume` would lose nothing",
            list(&readable)
        );
    }
    text
}

/// Writes a store for every node; the label comes last, so that an unfinished folder is never taken for a cluster.
async fn write(to: &Path, old: &Old, node: NodeId, survivor: &Survivor) -> anyhow::Result<()> {
    let refuse =
        |wrong: String| Usage::option("--to", to.display(), wrong, "name a folder that does not exist");
    if fs::read_dir(to).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(refuse("it is not empty".into()).into());
    }
    fs::create_dir_all(to).map_err(|error| refuse(format!("it cannot be made ({error})")))?;
    let mut label = Label::new(old.label.backend, old.label.nodes);
    label.recovered_from = Some((old.label.cluster.clone(), node.0));
    let disk = DiskStore { dir: to.into(), cluster: label.cluster.clone() };
    for (node, _) in &old.nodes {
        let storage = Storage::open(disk.file(*node))?;
        storage.identify(*node, &disk.cluster).await?;
        survivor.seed(&storage, *node).await?;
        storage.close().await;
    }
    label.write(to).with_context(|| format!("cannot write {CLUSTER_FILE}"))
}
