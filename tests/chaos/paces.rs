//! The kernel's opinion of a path outlives the flow that gave rise to it.

use std::time::Duration;

use zproxy_tests::net::connect;
use zproxy_tests::netns::INSIDE;
use zproxy_tests::site::PROXY_PORT;
use zproxy_tests::visits::{Kind, Talk};
use zproxy_tests::{Site, Visit, both_backends, eventually};

/// Bytes of a visit that shows BBR the width of the path.
const BULK_SIZE: u64 = 20 << 20;
/// Bytes of a visit that is policed: seconds of it.
const POLICED_SIZE: u64 = 120_000;
const POLICED: Duration = Duration::from_secs(120);
/// Visitors at a time: more than there are idle proxy_conns.
const TALKS: u64 = 12;

/// A number behind a word of `ss(8)`.
fn number(line: &str, before: &str) -> Option<f64> {
    let rest = &line[line.find(before)? + before.len()..];
    let end = rest.find(|it: char| !it.is_ascii_digit() && it != '.').unwrap_or(rest.len());
    rest[..end].parse().ok()
}

/// Whether a connection sends less than four segments in a round trip time.
fn is_slow(line: &str) -> bool {
    let number = |before| number(line, before).unwrap_or_else(|| panic!("no {before} in {line}"));
    let bytes_in_round = number("pacing_rate ") / 8.0 * number(" rtt:") / 1_000.0;
    bytes_in_round < 4.0 * number(" mss:")
}

both_backends! {
    /// A policer lets a flow crawl, and BBR remembers that for 48 rounds. The policer goes; those who come
    /// next on the same proxy_conn do not crawl.
    fn a_flow_does_not_pay_for_the_last(world) {
        Site::run(|net| {
            if !(net.client.congestion_control("bbr") && net.gateway.congestion_control("bbr")) {
                println!("skipped: this kernel has no BBR");
                return;
            }
            let (gateway, client) = Site::plans(world, &net);
            let mut site = Site::start(world, net, gateway, client);
            let frames = site.frames();
            let slow = |site: &Site| {
                let conns = site.net.client.conns_to(PROXY_PORT);
                conns.into_iter().filter(|line| is_slow(line)).collect::<Vec<_>>()
            };
            let policer = "limit rate over 20 kbytes/second burst 30 kbytes drop";
            let policed = format!("iifname {INSIDE} tcp dport {PROXY_PORT} {policer}");
            let mut flow = 0;
            let mut visit = |down| {
                flow += 1;
                let visit = Visit { kind: Kind::AnswerFirst, flow, up: 0, down };
                assert!(visit.make(site.public).is_ok(), "visit {flow}");
            };
            eventually("BBR believes in a policer", POLICED, || {
                site.net.gateway.unfilter();
                visit(BULK_SIZE);
                site.net.gateway.filter(&policed, "");
                visit(POLICED_SIZE);
                !slow(&site).is_empty()
            });
            site.net.gateway.unfilter();
            let conns: Vec<_> = (0..TALKS).map(|_| connect(site.public)).collect();
            let talks: Vec<_> = conns
                .iter()
                .zip(100..)
                .map(|(conn, flow)| Talk::begin(conn, flow).expect("an answer"))
                .collect();
            assert_eq!(slow(&site), Vec::<String>::new());
            drop(talks);
            drop(conns);
            site.expect_calm(frames);
        });
    }
}
