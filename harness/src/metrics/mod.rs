//! What a node shows to Prometheus: a page at `/metrics`, in its text format, if `--metrics` asks for it.
//!
//! ```text
//!   collect   what a node is asked for at each scrape, and its names        observed  what could not be asked for later
//!   text      reads the format, for `harness watch`
//! ```
//!
//! Nothing is counted for the page that the node does not count anyway, save how long operations took; everything is read when
//! somebody asks. There is no registry but the node's own. Deliberately knows no backend, nor who looks.

pub mod collect;
pub mod observed;
pub mod text;

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use anyhow::Context as _;
use axum::Router;
use axum::extract::State;
use axum::response::IntoResponse;
use axum::routing::get;
use http::{StatusCode, header};
use prometheus_client::encoding::prometheus_text::encode;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use replication::NodeId;
use tokio::runtime::Handle;
use tokio::task::AbortHandle;

pub use collect::{Snapshot, Source};
pub use observed::Observed;

use crate::exit::Usage;
use crate::http::service::accept;
use crate::kv::plan::KvPlan;
use crate::plan::{Plan, metrics_at};
use collect::Asked;

/// What every name begins with.
pub const PREFIX: &str = "harness";
/// Connections that are served at once; others wait. Few look at a node, and its store needs the descriptors.
const MAX_CONNECTIONS: usize = 16;
/// The format that Prometheus calls its text format.
const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A node's page, until it is dropped.
#[derive(Debug)]
pub struct Serving(AbortHandle);

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Everything that `node` of `plan` shows.
#[must_use]
pub fn registry(plan: &Plan, node: NodeId, source: Source, observed: Arc<Observed>) -> Registry {
    let labels = [("node".into(), node.to_string().into())];
    let mut registry = Registry::with_prefix_and_labels(PREFIX, labels.into_iter());
    let workload = plan.kv.as_ref().map_or("federated", KvPlan::workload);
    let about = [
        ("backend".into(), plan.backend.backend().to_string().into()),
        ("workload".into(), workload.into()),
        ("version".into(), env!("CARGO_PKG_VERSION").into()),
    ];
    registry.sub_registry_with_labels(about.into_iter()).register(
        "node_info",
        "1; its labels say what the node is",
        ConstGauge::new(1_i64),
    );
    observed.register(&mut registry);
    registry.register_collector(Box::new(Asked { node, source, observed }));
    registry
}

/// Shows `registry` at `at`, on the threads of `runtime`.
///
/// # Errors
/// If the address cannot be had; names the option.
pub fn serve(at: SocketAddr, registry: Registry, runtime: &Handle) -> anyhow::Result<Serving> {
    let listener = TcpListener::bind(at).map_err(|error| in_use(at, &error))?;
    listener.set_nonblocking(true).context("cannot serve metrics")?;
    let _entered = runtime.enter();
    let listener = tokio::net::TcpListener::from_std(listener).context("cannot serve metrics")?;
    let task = runtime.spawn(accept(listener, router(registry), MAX_CONNECTIONS));
    Ok(Serving(task.abort_handle()))
}

/// Why an address cannot be had, and what helps.
#[must_use]
pub fn in_use(at: SocketAddr, error: &io::Error) -> Usage {
    let (wrong, remedy) = match error.kind() {
        io::ErrorKind::AddrInUse => (
            format!("TCP address {at} is in use by another process"),
            "use another port, or another --network",
        ),
        io::ErrorKind::PermissionDenied => {
            (format!("TCP address {at} needs privileges"), "use a port from 1024 on")
        }
        io::ErrorKind::AddrNotAvailable => {
            (format!("{} is no address of this machine", at.ip()), "name the port only, or 0.0.0.0:PORT")
        }
        _ => (format!("TCP address {at}: {error}"), "use another port"),
    };
    Usage::option(metrics_at::OPTION, at.port(), wrong, remedy)
}

fn router(registry: Registry) -> Router {
    Router::new()
        .route(metrics_at::PATH, get(page))
        .fallback(|| async { (StatusCode::NOT_FOUND, "there is nothing here; see /metrics\n") })
        .with_state(Arc::new(registry))
}

async fn page(State(registry): State<Arc<Registry>>) -> impl IntoResponse {
    let mut text = String::new();
    match encode(&mut text, &registry) {
        Ok(()) => (StatusCode::OK, [(header::CONTENT_TYPE, CONTENT_TYPE)], text),
        Err(fmt::Error) => {
            let reason = "the metrics could not be written\n".into();
            (StatusCode::INTERNAL_SERVER_ERROR, [(header::CONTENT_TYPE, "text/plain")], reason)
        }
    }
}

#[cfg(test)]
mod tests;
