//! What nodes show to Prometheus while they run, and `harness watch`, on the built binary.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use harness::metrics::text::{Sample, parse};
use rustix::process::Signal;

use crate::federated::{Running, start, start_in};
use crate::keyvalue::at_a_terminal;
use crate::leaderboard::{agent, leader, wait_for};
use crate::network;

const PORT: u16 = 9464;

/// Where node `number` of a network shows its metrics.
fn address(network: &str, number: u8) -> SocketAddr {
    format!("{}{}:{PORT}", network.strip_suffix('0').unwrap(), 10 + number).parse().unwrap()
}

/// What a node shows now, if it answers.
fn scrape(at: SocketAddr) -> Option<Page> {
    let answer = agent().get(format!("http://{at}/metrics")).call().ok()?;
    assert_eq!(answer.headers()["content-type"], "text/plain; version=0.0.4; charset=utf-8");
    let text = answer.into_body().read_to_string().ok()?;
    Some(Page(parse(&text).unwrap_or_else(|error| panic!("{error}: {text}"))))
}

struct Page(Vec<Sample>);

impl Page {
    /// The sum of a metric's samples with these labels; 0 if there are none.
    fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let fits = |sample: &&Sample| {
            sample.name == format!("harness_{name}")
                && labels
                    .iter()
                    .all(|(key, value)| sample.labels.get(*key).is_some_and(|found| found == value))
        };
        self.0.iter().filter(fits).map(|sample| sample.value).sum()
    }

    fn count(&self, operation: &str) -> f64 {
        self.sum("operation_seconds_count", &[("operation", operation)])
    }
}

/// What all nodes show, once `condition` holds of it.
fn await_pages(network: &str, nodes: u8, what: &str, condition: impl Fn(&[Page]) -> bool) -> Vec<Page> {
    wait_for(what, || {
        let pages: Option<Vec<Page>> = (1..=nodes).map(|number| scrape(address(network, number))).collect();
        pages.filter(|pages| condition(pages))
    })
}

fn aggregators(pages: &[Page]) -> Vec<usize> {
    (0..pages.len()).filter(|place| pages[*place].sum("is_aggregator", &[]) == 1.0).collect()
}

fn bytes(page: &Page, plane: &str, direction: &str) -> f64 {
    page.sum("bytes_total", &[("plane", plane), ("direction", direction)])
}

/// `harness watch`, printed once.
fn watch(dir: &Path, words: &[&str]) -> (i32, String) {
    let said = crate::cli::harness(dir, &[&["watch"], words].concat());
    (said.code, said.out + &said.err)
}

/// A federated run of four nodes that goes on until it is ended.
fn federated(network: &str, options: &[&str]) -> Running {
    let words =
        "--nodes 4 --rounds 100000 --engine none --parameter-bytes 4kB --metrics 9464 --seed 7 --network";
    let words: Vec<&str> = words.split(' ').chain([network]).chain(options.iter().copied()).collect();
    start_in(tempfile::tempdir().unwrap(), &words)
}

fn ended(mut running: Running) {
    running.signal(Signal::TERM);
    assert_eq!(running.wait().code(), 143);
}

#[test]
fn every_node_of_a_federated_run_shows_how_it_is() {
    for backend in ["raft", "gossip"] {
        let network = network();
        let running = federated(&network, &["--backend", backend]);
        let is_on = |pages: &[Page]| {
            aggregators(pages).len() == 1 && pages.iter().all(|page| page.sum("round", &[]) >= 2.0)
        };
        let first = await_pages(&network, 4, "one aggregator and two rounds", is_on);
        let leads = aggregators(&first)[0];
        let (round, sent) = (first[leads].sum("round", &[]), bytes(&first[leads], "replication", "sent"));
        // On a busy machine the aggregator may change meanwhile.
        let then = await_pages(&network, 4, "two more rounds that everybody took part in", |pages| {
            let [now] = aggregators(pages)[..] else { return false };
            let is_well = |(place, page): (usize, &Page)| {
                page.sum("aggregator", &[]) == now as f64 + 1.0
                    && page.sum("round", &[]) >= round + 2.0
                    && page.count(if place == now { "put" } else { "fit" }) >= 2.0
                    && page.sum("connected_peers", &[("plane", "replication")]) == 3.0
                    && page
                        .0
                        .iter()
                        .all(|sample| sample.name != "harness_suspicion_level" || sample.value < 1.0)
            };
            pages.iter().enumerate().all(is_well)
        });
        assert!(bytes(&then[leads], "replication", "sent") > sent, "{backend}");
        for (place, (page, before)) in then.iter().zip(&first).enumerate() {
            assert_eq!(page.sum("node_info", &[("backend", backend), ("workload", "federated")]), 1.0);
            assert!(page.0.iter().all(|sample| sample.labels["node"] == (place + 1).to_string()));
            assert!(page.sum("epoch", &[]) >= 1.0 && page.sum("resident_bytes", &[]) > 1e6);
            assert!(bytes(page, "learning", "received") > bytes(before, "learning", "received"));
            assert!(page.sum("checkpoint_age_seconds", &[]) < 60.0);
            let watched = page.0.iter().filter(|sample| sample.name == "harness_suspicion_level").count();
            let leads = page.sum("is_aggregator", &[]) == 1.0;
            assert_eq!(watched, if backend == "gossip" { 3 } else { usize::from(!leads) }, "{backend}");
            assert!(page.sum("operation_last_seconds", &[]) > 0.0);
            if leads {
                assert!(page.count("round") >= 1.0, "{backend}");
                assert!((1.0..=4.0).contains(&page.sum("checkpoint_holders", &[])));
            }
        }
        ended(running);
    }
}

#[test]
fn servers_of_a_dictionary_show_what_clients_asked() {
    let network = network();
    let words =
        "--workload kv --nodes 3 --clients 4 --entries 20 --duration 600 --metrics 9464 --seed 7 --network";
    let words: Vec<&str> = words.split(' ').chain([network.as_str()]).collect();
    let running = start_in(tempfile::tempdir().unwrap(), &words);
    let first = await_pages(&network, 3, "one leader and writes", |pages| {
        aggregators(pages).first().is_some_and(|leads| pages[*leads].count("write") >= 20.0)
    });
    let leads = aggregators(&first)[0];
    let then = await_pages(&network, 3, "more reads, writes and batches", |pages| {
        let more = |name: &str| pages[leads].count(name) >= first[leads].count(name) + 20.0;
        let follows = |(now, before): (&Page, &Page)| now.sum("round", &[]) > before.sum("round", &[]);
        more("read") && more("write") && more("put") && pages.iter().zip(&first).all(follows)
    });
    let leader = &then[leads];
    assert!(leader.sum("checkpoint_holders", &[]) >= 2.0);
    let seconds = leader.sum("operation_seconds_sum", &[("operation", "write")]) / leader.count("write");
    assert!((0.000_01..5.0).contains(&seconds), "{seconds}");
    assert_eq!(leader.sum("node_info", &[("workload", "kv")]), 1.0);
    ended(running);
}

#[test]
fn a_leaderboard_s_nodes_show_votes_and_watch_shows_who_died() {
    let (dir, network) = (tempfile::tempdir().unwrap(), network());
    let serve =
        ["leaderboard", "serve", "--quiet", "--balancer", "none", "--metrics", "9464", "--network", &network];
    let mut controller = crate::leaderboard::Process::harness(dir.path(), &serve);
    let leads = leader(controller.child(), &network);
    let vote = || {
        let url = format!("http://{}{}:8080/add_vote", network.strip_suffix('0').unwrap(), 11);
        agent().post(url).send(r#"{"player": "ada"}"#).ok()
    };
    wait_for("a vote", vote);
    let page = scrape(address(&network, 1)).unwrap();
    assert_eq!((page.count("vote"), page.sum("node_info", &[("workload", "leaderboard")])), (1.0, 1.0));

    let (code, text) = watch(dir.path(), &[]);
    assert_eq!(code, 0, "{text}");
    assert!(text.starts_with("leaderboard over raft: 3 of 3 nodes answer; node "), "{text}");
    assert!(text.contains("vote ") && text.contains("heartbeat/s") && !text.contains("no answer"), "{text}");

    rustix::process::kill_process(rustix::process::Pid::from_raw(leads).unwrap(), Signal::KILL).unwrap();
    wait_for("another leader, and a row for the dead one", || {
        let (code, text) = watch(dir.path(), &["results/run", "--once"]);
        assert_eq!(code, 0, "a node that does not answer is no end: {text}");
        let lines = text.lines().filter(|line| line.contains(" no answer ")).count();
        (text.contains("2 of 3 nodes answer") && lines == 1 && text.contains(" aggregator ")).then_some(())
    });
}

#[test]
fn watch_goes_on_on_a_terminal_until_it_is_ended() {
    let network = network();
    let mut running = federated(&network, &[]);
    running.await_events("a round", |events| events.iter().any(|event| event["event"] == "round_finished"));
    let results = running.results();
    let command =
        format!("'{}' watch --interval 100ms '{}'", env!("CARGO_BIN_EXE_harness"), results.display());
    // Three views, then Ctrl-C.
    let view = "4 of 4 nodes answer; node ";
    at_a_terminal(&command, &[(view, ""), (view, ""), (view, "\u{3}")]);
    ended(running);
}

#[test]
fn who_is_no_node_is_a_row_and_nobody_at_all_is_a_failure() {
    let dir = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap().to_string();
    let answering = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        // An answer that comes before the request is none.
        let head = BufReader::new(&stream).lines().map_while(Result::ok).take_while(|line| !line.is_empty());
        assert!(head.count() > 0);
        let body = "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nother_up 1";
        stream.write_all(body.as_bytes()).unwrap();
        // Whoever asked ends the connection, so that closing does not reset what was sent.
        let _ = std::io::copy(&mut stream, &mut std::io::sink());
    });
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let (code, text) = watch(dir.path(), &["--metrics", &format!("{at},{free}")]);
    answering.join().unwrap();
    assert_eq!(code, 1, "{text}");
    assert!(text.starts_with("0 of 2 nodes answer; nobody is known to aggregate"), "{text}");
    assert!(text.contains(&format!(" {at}: something else than a node of this program answers")), "{text}");
    assert!(text.contains(&format!(" {free}: cannot connect: ")), "{text}");
    assert!(text.contains("warning: no node answers"), "{text}");

    for (words, expected) in [
        (&[][..], "error: results/run: no results folder, and there is none in it; name the results folder"),
        (&["nowhere"], "error: nowhere: no results folder"),
        (&["--metrics", "9464"], "invalid value '9464' for '--metrics"),
        (&["--interval", "0", "nowhere"], "error: --interval 0ms: "),
    ] {
        let (code, text) = watch(dir.path(), words);
        assert!(code == 2 && text.contains(expected), "{words:?}: {code} {text}");
    }
}

#[test]
fn watch_needs_a_run_under_way_that_shows_metrics() {
    let running = start(&["--nodes", "3", "--rounds", "1", "--engine", "none", "--parameter-bytes", "4kB"]);
    let run = running.wait();
    assert_eq!(run.code(), 0, "{}", run.text());
    let (code, text) = watch(run.dir.path(), &[]);
    assert!(
        code == 2 && text.contains("is over (") && text.contains("; name the results folder of a run under"),
        "{text}"
    );
    let folder: PathBuf = run.results();
    let manifest = folder.join("manifest.json");
    let text = std::fs::read_to_string(&manifest).unwrap();
    std::fs::write(&manifest, text.replace("\"completed\"", "\"running\"")).unwrap();
    let (code, text) = watch(run.dir.path(), &[folder.to_str().unwrap()]);
    assert!(
        code == 2 && text.contains("its nodes show no metrics; start the run with --metrics 9464"),
        "{text}"
    );
}

#[test]
fn an_address_that_cannot_be_is_refused_before_anything_starts() {
    let network = network();
    let taken = TcpListener::bind(address(&network, 2)).unwrap();
    let refused = |words: &[&str]| {
        let run = start(&[&["--nodes", "3"], words].concat()).wait();
        assert_eq!(run.code(), 2, "{words:?}: {}", run.text());
        assert!(!run.dir.path().join("results").exists(), "{words:?} left something behind");
        run.text()
    };
    for (words, expected) in [
        (&["--metrics", "0"][..], "0 is not a port that can be asked"),
        (&["--metrics", "localhost:9464"], "use a port or IP:PORT, for example 9464 or 0.0.0.0:9464"),
        (
            &["--metrics", "127.0.0.1:65534"],
            "--metrics 127.0.0.1:65534: there are no 3 ports from there on; use a lower",
        ),
        (
            &["--metrics", "192.0.2.1:9464"],
            "--metrics 9464: 192.0.2.1 is no address of this machine; name the port only",
        ),
        (
            &["--metrics", "8080", "--workload", "leaderboard", "--balancer", "none"],
            "--metrics 8080: it is the leaderboard's port, by --learning-port; use another port",
        ),
        (
            &["--metrics", "9464", "--workload", "kv", "--peer", "etcd"],
            "--metrics 9464: etcd serves in place of the nodes",
        ),
    ] {
        let text = refused(words);
        assert!(text.contains(expected), "{words:?}: {text}");
    }
    let run =
        start_in(tempfile::tempdir().unwrap(), &["--nodes", "3", "--metrics", "9464", "--network", &network]);
    let run = run.wait();
    let expected = format!(
        "--metrics 9464: TCP address {} is in use by another process; use another port",
        address(&network, 2)
    );
    assert!(run.code() == 2 && run.text().contains(&expected), "{}", run.text());
    drop(taken);
}

#[test]
fn nodes_can_share_an_address_and_a_dead_node_s_restart_shows_its_metrics_again() {
    let network = network();
    let base = format!("{}201:9464", network.strip_suffix('0').unwrap());
    let mut words =
        vec!["--nodes", "3", "--rounds", "100000", "--engine", "none", "--parameter-bytes", "4kB"];
    words.extend(["--durability", "disk", "--fault", "restart@node:2,round:3", "--metrics", &base]);
    let mut running =
        start_in(tempfile::tempdir().unwrap(), &[&words[..], &["--network", &network]].concat());
    let at = |number: u16| {
        let base: SocketAddr = base.parse().unwrap();
        SocketAddr::new(base.ip(), base.port() + number - 1)
    };
    let label = |page: &Page| page.0[0].labels["node"].clone();
    wait_for("all nodes", || {
        (1..=3).map(|number| scrape(at(number)).map(|page| label(&page))).collect::<Option<Vec<_>>>()
    });
    running.await_events("the restart", |events| {
        events.iter().filter(|event| event["event"] == "listening" && event["node"] == 2).count() == 2
    });
    let again = wait_for("node 2 trains again", || scrape(at(2)).filter(|page| page.count("fit") >= 1.0));
    assert_eq!(label(&again), "2");
    ended(running);
}
