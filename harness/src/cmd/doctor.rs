//! `harness doctor`: what would keep the hosts of an inventory from running nodes, and what to do about it.

use anyhow::Context as _;
use comfy_table::{Table, presets};

use super::print;
use crate::cli::{DoctorArgs, EngineArg};
use crate::examine::{self, Examined, Finding, Wanted};
use crate::exit::{Exit, Usage};
use crate::place::inventory;
use crate::units::show_ns;

pub(super) fn run(args: &DoctorArgs) -> anyhow::Result<Exit> {
    let refuse = |error| {
        Usage::option(
            "--inventory",
            args.inventory.display(),
            error,
            "correct the file; docs/BOARDS.md explains it",
        )
    };
    let hosts = inventory::load(&args.inventory, args.group.as_deref()).map_err(refuse)?;
    let wanted = Wanted {
        ports: vec![args.learning_port, args.replication_port],
        data: args.data.clone(),
        cut: None,
        torch: args.engine == EngineArg::Torch,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let examined = runtime.context("cannot start the runtime")?.block_on(examine::examine_all(
        &hosts,
        args.ssh_config.as_deref(),
        &wanted,
    ));
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["host", "", "found", "what to do"]);
    let mut failed = false;
    let findings = examine::findings(&hosts, &examined, &wanted);
    for ((host, examined), findings) in hosts.iter().zip(&examined).zip(findings) {
        failed |= findings.iter().any(|finding| finding.fatal);
        if let (true, Ok(examined)) = (findings.is_empty(), examined) {
            table.add_row([&host.name, "ok", &describe(examined), ""]);
        }
        for Finding { fatal, trouble } in findings {
            let mark = if fatal { "FAILED" } else { "warning" };
            table.add_row([&host.name, mark, &trouble.wrong, &trouble.remedy]);
        }
    }
    print(format!("{table}\n").as_bytes())?;
    Ok(if failed { Exit::Failed } else { Exit::Success })
}

/// A host that is in order, in words.
fn describe(examined: &Examined) -> String {
    let Examined { facts, monotonic, .. } = examined;
    let machine = facts.board.model.as_ref().unwrap_or(&facts.machine.cpu_model);
    let interface = facts.interface.as_deref().unwrap_or("-");
    let uncertainty = show_ns(monotonic.uncertainty_ns);
    format!("{machine}, {}, {interface}, clock within {uncertainty}", facts.machine.architecture)
}
