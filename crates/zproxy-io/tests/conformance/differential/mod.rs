//! The same random scripts on every driver and every path: what comes of them must not differ.
//!
//! Compared are bytes, their order, ends, faults, and that everything was returned. Not compared is
//! what a driver may decide: how the bytes are cut, and what a connection still yields once it has
//! been reset.

mod play;
mod script;

use std::thread;

use zproxy_io::RelayMode;

use crate::support::{EpollKit, Kit, UringKit, World, has_driver};

use play::Play;
use script::Script;

/// Scripts that are played; `ZPROXY_DIFFERENTIAL_SCRIPTS` changes the number.
const SCRIPTS: u64 = 16;
const SCRIPTS_VARIABLE: &str = "ZPROXY_DIFFERENTIAL_SCRIPTS";
/// Plays the script of this seed alone.
const SEED_VARIABLE: &str = "ZPROXY_DIFFERENTIAL_SEED";
const STEPS: usize = 80;

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is a number")))
}

/// What became of a script, line by line.
fn play<K: Kit>(script: &Script, relay: RelayMode) -> Vec<String> {
    let mut play = Play::new(World::<K::Driver>::new::<K>(relay));
    for step in script.steps() {
        play.step(step);
    }
    play.finish()
}

type Player = fn(&Script, RelayMode) -> Vec<String>;

/// Every driver of this machine, with every path.
fn players() -> Vec<(String, Player, RelayMode)> {
    let mut players: Vec<(&str, Player)> = vec![("epoll", play::<EpollKit>)];
    if has_driver::<UringKit>() {
        players.push(("uring", play::<UringKit>));
    }
    let relays = [RelayMode::Copy, RelayMode::Splice, RelayMode::Auto];
    let all = players.iter().flat_map(|(name, player)| {
        relays.map(|relay| (format!("{name} {relay:?}"), *player, relay))
    });
    all.collect()
}

/// A driver is what it does: the others do the same.
#[test]
fn scripts_end_alike_on_every_driver() {
    let seeds = match number(SEED_VARIABLE) {
        Some(seed) => seed..seed + 1,
        None => 1..number(SCRIPTS_VARIABLE).unwrap_or(SCRIPTS) + 1,
    };
    let players = players();
    let mut lines = 0;
    for seed in seeds {
        let script = Script::new(seed, STEPS);
        let results: Vec<_> = thread::scope(|scope| {
            let run = |(_, player, relay): &(String, Player, RelayMode)| {
                let (player, relay, script) = (*player, *relay, &script);
                scope.spawn(move || player(script, relay))
            };
            let threads: Vec<_> = players.iter().map(run).collect();
            threads.into_iter().map(|thread| thread.join()).collect()
        });
        let mut told = Vec::new();
        for (result, (name, ..)) in results.into_iter().zip(&players) {
            match result {
                Ok(result) => told.push((name, result)),
                Err(_) => panic!("{name} fails; {SEED_VARIABLE}={seed} plays it again"),
            }
        }
        let (first, right) = &told[0];
        for (name, result) in &told[1..] {
            let place = (0..right.len().max(result.len()))
                .find(|&place| right.get(place) != result.get(place));
            if let Some(place) = place {
                panic!(
                    "after {:#?}\n{first}: {:?}\n{name}: {:?}\n{SEED_VARIABLE}={seed} plays it \
                     again",
                    &right[place.saturating_sub(12)..place.min(right.len())],
                    right.get(place),
                    result.get(place),
                );
            }
        }
        lines += right.len();
    }
    println!("{lines} lines of {} players are equal", players.len());
    assert!(lines > STEPS, "nearly nothing was played");
}
