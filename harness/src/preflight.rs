//! What has to be asked of the machine before anything starts: data, results folder, ports. Reads and probes; writes
//! nothing and keeps nothing.

use std::io;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::path::Path;

use rustix::fs::{Access, access};
use workloads::federated::EngineKind;
use workloads::federated::shard::{Cut, Piece};

use crate::capability::{self, NET_ADMIN, NET_RAW, SYS_ADMIN, capture_remedy};
use crate::capture::{CaptureError, CaptureMode};
use crate::data;
use crate::disk;
use crate::exit::Usage;
use crate::kv::leaderboard::haproxy;
use crate::kv::plan::Balancer;
use crate::kv::plan::Peer;
use crate::metrics::in_use;
use crate::place::netns::{Namespace, network};
use crate::plan::{Durability, PlacementKind, Plan, Trial};

/// Checks that this machine can run `trial`.
///
/// # Errors
/// The first obstacle, by option, with its remedy.
pub fn check(trial: &Trial) -> Result<(), Usage> {
    let here = trial.plan.placement != PlacementKind::Ssh;
    if here {
        check_engine(trial.plan.job.engine)?;
    }
    if let (Some(path), true) = (&trial.plan.job.data, here) {
        // All nodes read the same.
        let devices = trial.plan.devices().len();
        let cut = Cut::of(&trial.plan.job, devices);
        let pieces: Vec<_> = (1..=devices as u64).map(|place| Piece { place, cut }).collect();
        data::check(path, &pieces)?;
    }
    check_out(&trial.out)?;
    if let Durability::Disk { dir: Some(dir) } = &trial.durability {
        disk::check(dir, &trial.plan, !trial.changes.is_empty())?;
    }
    if here && trial.plan.capture == CaptureMode::Required && capability::missing(&[NET_RAW]).is_some() {
        let remedy = format!("{}; or use --capture auto", capture_remedy());
        return Err(Usage::option("--capture", "required", CaptureError::NotPermitted, remedy));
    }
    match trial.plan.placement {
        PlacementKind::Process => match trial.plan.kv.as_ref().and_then(|kv| kv.peer) {
            None => {
                if trial
                    .plan
                    .kv
                    .as_ref()
                    .and_then(|kv| kv.board)
                    .is_some_and(|b| b.balancer == Balancer::Haproxy)
                {
                    haproxy::check()?;
                }
                check_ports(&trial.plan)
            }
            Some(peer) => check_peer(peer, &trial.plan),
        },
        PlacementKind::Netns => check_namespaces(&trial.plan),
        // The hosts are asked before anything is started there.
        PlacementKind::Ssh => Ok(()),
    }
}

/// Whether this process may make network namespaces, and has the commands for it.
fn check_namespaces(plan: &Plan) -> Result<(), Usage> {
    let refuse = |wrong| {
        let remedy = "run it as root, for example with sudo, or use --placement process";
        Err(Usage::option("--placement", "netns", wrong, remedy))
    };
    if let Some(missing) = capability::missing(&[SYS_ADMIN, NET_ADMIN]) {
        return refuse(format!("network namespaces need {missing}, which root has and this process has not"));
    }
    if let Err(error) = Namespace::new() {
        return refuse(format!("a network namespace cannot be made ({error})"));
    }
    network::check_tools().map_err(|missing| {
        let wrong = format!("the command {missing} is not there");
        Usage::option("--placement", "netns", wrong, "install iproute2, or use --placement process")
    })?;
    if plan.link.netem {
        network::check_netem().map_err(|error| {
            let wrong = format!("this kernel has no netem: {error:#}");
            let remedy =
                "load or build sch_netem, or leave netem out: nodes then do the same to what they send";
            Usage::option("--link", "with netem", wrong, remedy)
        })?;
    }
    Ok(())
}

fn check_engine(engine: EngineKind) -> Result<(), Usage> {
    if engine == EngineKind::Torch && !cfg!(feature = "torch") {
        let remedy = "build with --features torch, or use --engine candle";
        return Err(Usage::option("--engine", "torch", "not in this binary", remedy));
    }
    Ok(())
}

/// Whether a folder can be made at `out`: its nearest ancestor that exists must be a folder that can be written.
fn check_out(out: &Path) -> Result<(), Usage> {
    let refuse = |wrong: String| {
        Err(Usage::option("--out", out.display(), wrong, "name a folder that can be written"))
    };
    // An empty ancestor is the current folder of a relative path.
    let existing =
        out.ancestors().map(|path| if path.as_os_str().is_empty() { Path::new(".") } else { path });
    for path in existing {
        match path.metadata() {
            Ok(found) if !found.is_dir() => return refuse(format!("{} is not a folder", path.display())),
            Ok(_) => {
                return match access(path, Access::WRITE_OK | Access::EXEC_OK) {
                    Ok(()) => Ok(()),
                    Err(error) => {
                        refuse(format!("{} cannot be written ({})", path.display(), io::Error::from(error)))
                    }
                };
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return refuse(format!("{} cannot be used ({error})", path.display())),
        }
    }
    refuse("no part of it exists".into())
}

/// Binds every address of the run, all at the same time, and lets them go.
fn check_ports(plan: &Plan) -> Result<(), Usage> {
    let mut bound = Vec::new();
    check_metrics(plan)?;
    for member in &plan.members {
        for (option, port) in
            [("--learning-port", plan.learning_port), ("--replication-port", plan.replication_port)]
        {
            match UdpSocket::bind((member.ip, port)) {
                Ok(socket) => bound.push(socket),
                Err(error) => return Err(port_error(option, port, ("UDP", member.ip), &error)),
            }
        }
        if plan.backend.fast_failover
            && let Err(error) = TcpListener::bind((member.ip, plan.replication_port))
        {
            return Err(port_error("--replication-port", plan.replication_port, ("TCP", member.ip), &error));
        }
    }
    Ok(())
}

/// Binds every address that nodes show their metrics at, and lets them go.
fn check_metrics(plan: &Plan) -> Result<(), Usage> {
    let mut bound = Vec::new();
    for at in plan.metrics.map(|at| at.all(plan)).into_iter().flatten().map(|(_, at)| at) {
        bound.push(TcpListener::bind(at).map_err(|error| in_use(at, &error))?);
    }
    Ok(())
}

/// Whether another system can serve at the nodes' addresses.
fn check_peer(peer: Peer, plan: &Plan) -> Result<(), Usage> {
    if !peer.is_installed() {
        let wrong = format!("no program {} is on the PATH", peer.name());
        return Err(Usage::option("--peer", peer.name(), wrong, peer.remedy()));
    }
    for member in &plan.members {
        for (option, port) in
            [("--learning-port", plan.learning_port), ("--replication-port", plan.replication_port)]
        {
            if let Err(error) = TcpListener::bind((member.ip, port)) {
                return Err(port_error(option, port, ("TCP", member.ip), &error));
            }
        }
    }
    Ok(())
}

fn port_error(option: &str, port: u16, (protocol, ip): (&str, Ipv4Addr), error: &io::Error) -> Usage {
    let address = format!("{protocol} address {ip}:{port}");
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            let wrong = format!("{address} is in use by another process");
            Usage::option(option, port, wrong, format!("use another {option} or --network 127.X.Y.0"))
        }
        io::ErrorKind::PermissionDenied => {
            let wrong = format!("{address} needs privileges");
            Usage::option(option, port, wrong, "use a port from 1024 on")
        }
        _ => Usage::option(option, port, format!("{address}: {error}"), "use another --network 127.X.Y.0"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests::plan;

    #[test]
    fn an_occupied_port_is_named_with_its_option() {
        let mut plan = plan(3);
        let taken = UdpSocket::bind("127.9.9.13:0").unwrap();
        plan.replication_port = taken.local_addr().unwrap().port();
        let message = check_ports(&plan).unwrap_err().to_string();
        let port = plan.replication_port;
        assert!(
            message
                .starts_with(&format!("--replication-port {port}: UDP address 127.9.9.13:{port} is in use")),
            "{message}"
        );
        drop(taken);
        assert_eq!(check_ports(&plan), Ok(()));
    }

    #[test]
    fn the_results_folder_need_not_exist_but_must_be_possible() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert_eq!(check_out(&dir.path().join("a/b/c")), Ok(()));
        assert_eq!(check_out(Path::new("results/run")), Ok(()));
        for out in [file.clone(), file.join("below"), file.join("far/below")] {
            let message = check_out(&out).unwrap_err().to_string();
            assert!(message.starts_with("--out "), "{message}");
        }
        assert!(!dir.path().join("a").exists(), "looking makes nothing");
    }
}
