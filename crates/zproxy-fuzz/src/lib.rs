//! What the fuzzers run.
//!
//! A target is a function of bytes that panics when a promise is broken. The same functions serve
//! libFuzzer (`fuzz/`, which adds nothing but entry points) and plain tests, which run every target
//! over the seeds, the regressions and some thousand inputs made of them ([`make`]).
//!
//! * Decoders: [`openings`], [`frames`], [`text`], [`config`]. Any bytes are judged.
//! * Lists of operations on machines, against models simple enough to be seen to be right:
//!   [`control`], [`lane`], [`registry`], [`pool`], [`proxy_conn`], [`replay`].
#![forbid(unsafe_code)]

pub mod config;
pub mod control;
pub mod frames;
pub mod input;
pub mod lane;
pub mod make;
pub mod openings;
pub mod pool;
pub mod proxy_conn;
pub mod registry;
pub mod replay;
pub mod text;

/// A function of bytes that panics when a promise is broken.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name: that of its libFuzzer program and of its folders of seeds and regressions.
    pub name: &'static str,
    /// Judges an input.
    pub run: fn(&[u8]),
    /// Inputs that plain tests make for it. Together they take some seconds.
    pub made: u32,
}

const fn target(name: &'static str, run: fn(&[u8]), made: u32) -> Target {
    Target { name, run, made }
}

/// Every target.
pub const TARGETS: [Target; 12] = [
    target("openings", openings::openings, 10_000),
    target("frames", frames::frames, 10_000),
    target("bodies", frames::bodies, 10_000),
    target("text", text::text, 10_000),
    target("config", config::config, 2_000),
    target("control", control::control, 3_000),
    target("lane", lane::lane, 5_000),
    target("registry", registry::registry, 5_000),
    target("pool", pool::pool, 5_000),
    target("proxy_conn", proxy_conn::proxy_conn, 5_000),
    target("proxy_conn_liar", proxy_conn::proxy_conn_liar, 10_000),
    target("replay", replay::replay, 2_000),
];
