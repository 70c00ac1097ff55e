//! The generator against the simulator: over real sockets where counts are compared, over pipes
//! and in virtual time where times are.

#![expect(clippy::unwrap_used, reason = "a test fails where it unwraps")]

mod correction;
mod counts;
mod errors;
mod reports;
mod servers;

use std::{net::SocketAddr, sync::Arc, time::Duration};
use tidegate_bench::{Arrivals, Bodies, Error, Headers, Load, Options, Report, Shape, Target, run};
use tidegate_core::Operation;
use tidegate_sim::{Distribution, Faults, Options as SimOptions, Sim};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// 20 ms to the first token, 1 ms between tokens.
fn sim_options() -> SimOptions {
    SimOptions { ttft: fixed(20), itl: fixed(1), ..SimOptions::default() }
}

fn fixed(millis: u64) -> Distribution {
    Distribution::Fixed(Duration::from_millis(millis))
}

fn faulty(faults: Faults) -> Arc<Sim> {
    Sim::new(SimOptions { faults, ..sim_options() })
}

/// Serves `sim` on a free port; it goes when the test's runtime does.
async fn listen(sim: &Arc<Sim>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(Arc::clone(sim).serve(listener, std::future::pending::<()>()));
    address
}

fn local(sim: &Arc<Sim>) -> Target {
    let sim = Arc::clone(sim);
    Target::local(move || sim.connect())
}

fn shape(stream: bool) -> Shape {
    Shape {
        operation: Operation::ChatCompletions,
        model: "sim-small".into(),
        overrides_model: false,
        max_tokens: Some(8),
        stream,
    }
}

fn options(target: Target, load: Load, stream: bool) -> Options {
    Options {
        target,
        operation: Operation::ChatCompletions,
        model: "sim-small".into(),
        bodies: Bodies::prompt("wave {{number}}", &shape(stream)),
        headers: Headers::new(),
        stream,
        load,
        duration: Duration::from_secs(600),
        warmup: Duration::ZERO,
        requests: None,
        timeout: Duration::from_secs(20),
        slo: None,
        seed: 1,
    }
}

const fn closed(workers: usize) -> Load {
    Load::Closed { workers }
}

const fn open(per_second: f64) -> Load {
    Load::Open { per_second, arrivals: Arrivals::Uniform, max_in_flight: 1000 }
}

async fn ran(options: Options) -> Report {
    run(options, CancellationToken::new(), |_| ()).await.unwrap()
}

/// So many requests, over real sockets.
async fn answered(sim: &Arc<Sim>, load: Load, stream: bool, requests: u64) -> Report {
    let target = Target::parse(&format!("http://{}", listen(sim).await)).unwrap();
    ran(Options { requests: Some(requests), ..options(target, load, stream) }).await
}

fn count(report: &Report, class: &str) -> u64 {
    report.classes[class]
}
