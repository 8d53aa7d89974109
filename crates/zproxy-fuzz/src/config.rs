//! Configuration files, from bytes to settings.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Display;
use std::fs;
use std::path::Path;

use tempfile::TempDir;
use zproxy_ops::{Code, Exit, Machine};

use crate::input::Input;

thread_local! {
    /// Where the files of this thread lie.
    static DIR: TempDir = tempfile::tempdir().expect("a temporary directory");
}

#[derive(Clone, Copy, Debug)]
enum Program {
    Gateway,
    Client,
    Forward,
}

fn machine() -> Machine {
    Machine {
        cpus_allowed: vec![0, 1, 2, 3],
        has_ipv6: true,
        is_root: true,
        has_env_token: false,
        variables: BTreeMap::new(),
    }
}

/// What a program makes of a file: the settings as it shows and holds them, or its complaint.
fn understand(program: Program, path: &Path) -> Result<(String, String), Exit> {
    let words: &[&str] = match program {
        Program::Gateway => &["zproxyd"],
        Program::Client => &["zproxy", "--server", "gateway:1"],
        Program::Forward => &["zproxy", "forward"],
    };
    let mut args: Vec<OsString> = words.iter().map(Into::into).collect();
    args.extend(["--config".into(), path.into()]);
    fn show(settings: &(impl Display + std::fmt::Debug)) -> (String, String) {
        (settings.to_string(), format!("{settings:?}"))
    }
    if matches!(program, Program::Gateway) {
        return match zproxyd::cli::parse_on(args, &machine())? {
            zproxyd::cli::Command::Serve(settings) => Ok(show(&settings)),
            other => panic!("not asked for: {other:?}"),
        };
    }
    match zproxy::cli::parse_on(args, &machine())? {
        zproxy::cli::Command::Serve(settings) => Ok(show(&settings)),
        zproxy::cli::Command::Forward(settings) => Ok(show(&settings)),
    }
}

fn read(program: Program, name: &str, bytes: &[u8]) -> Result<(String, String), Exit> {
    DIR.with(|dir| {
        let path = dir.path().join(name);
        fs::write(&path, bytes).expect("the file of a test can be written");
        let result = understand(program, &path);
        if let Err(exit) = &result {
            assert_eq!(exit.code, Code::Usage, "a file cannot be any other failure: {exit:?}");
            assert!(exit.message.len() > 10, "a complaint says what is wrong: {exit:?}");
        }
        result
    })
}

/// A file is understood or refused with a reason, the same each time; what a JSON file means, the
/// same keys mean in TOML.
pub fn config(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let kind = input.below(6);
    let program = [Program::Gateway, Program::Client, Program::Forward][usize::from(kind % 3)];
    let text = input.rest();
    if kind < 3 {
        let understood = read(program, "settings.toml", text);
        assert_eq!(read(program, "settings.toml", text), understood);
        return;
    }
    let understood = read(program, "settings.json", text);
    let Ok(table) = serde_json::from_slice::<serde_json::Value>(text) else { return };
    // What JSON can say and TOML cannot: nulls, numbers beyond 63 bits, something else than a table.
    let Ok(as_toml) = toml::to_string(&table) else { return };
    match (understood, read(program, "settings.toml", as_toml.as_bytes())) {
        (Ok(json), Ok(toml)) => assert_eq!(
            (&json.0, json.1.replace("settings.json", "settings.toml")),
            (&toml.0, toml.1),
        ),
        (Err(_), Err(_)) => {}
        (json, toml) => panic!("JSON: {json:?}\nTOML: {toml:?}\n{as_toml}"),
    }
}
