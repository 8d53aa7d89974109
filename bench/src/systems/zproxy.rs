//! The programs of this workspace.

use std::fmt::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;

use super::child::{Folder, Start};
use super::{Backend, Build, Path, Running, Side, Tools, Variant};

/// How long a busy variant watches before it sleeps.
const BUSY_POLL_US: u32 = 50;

const TOKEN: &str = "a-token-that-guards-a-bench-on-loopback";

fn program(name: &str, variant: &Variant, tools: &Tools) -> Result<PathBuf, String> {
    let folder = match variant.build {
        Build::Current => &tools.zproxy_dir,
        Build::Baseline => {
            tools.baseline_dir.as_ref().ok_or_else(|| "no --baseline-dir was given".to_owned())?
        }
    };
    let path = folder.join(name);
    match path.is_file() {
        true => Ok(path),
        false => Err(format!("{} is not there", path.display())),
    }
}

pub(super) fn version(variant: &Variant, tools: &Tools) -> Result<String, String> {
    let path = program("zproxy", variant, tools)?;
    program("zproxyd", variant, tools)?;
    let output = Command::new(path).arg("--version").output().map_err(|why| why.to_string())?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn common(start: Start, variant: &Variant, tools: &Tools) -> Start {
    let backend = match variant.backend {
        Backend::Uring => "uring",
        Backend::Epoll => "epoll",
    };
    let mut start = start.arg("--backend").arg(backend).env("ZPROXY_TOKEN", TOKEN);
    match variant.path {
        Path::Auto => {}
        Path::Splice => start = start.arg("--relay").arg("splice"),
        Path::Copy => start = start.arg("--relay").arg("copy"),
    }
    if variant.is_busy {
        start = start.arg("--busy-poll").arg(BUSY_POLL_US.to_string());
    }
    if let Some(cores) = &variant.cores {
        start = start.arg("--cores").arg(cores);
    }
    start.args(&tools.zproxy_args)
}

pub(super) fn start_tunnel(
    variant: &Variant,
    locals: &[SocketAddr],
    tools: &Tools,
) -> Result<Running, String> {
    let folder = Folder::new()?;
    let start = Start::new(program("zproxyd", variant, tools)?, tools.relay_cpus.as_ref())
        .args(["--bind", "127.0.0.1", "--ctl-port", "0", "--proxy-port", "0", "--state-dir"])
        .arg(folder.path());
    let mut gateway = common(start, variant, tools).spawn(&folder)?;
    let ctl = gateway.wait_for(|said| ready_addr(said, "zproxyd ready ", "ctl="))?;

    let mut text = format!("server = \"{ctl}\"\n");
    for (number, local) in locals.iter().enumerate() {
        // Writing to a string cannot fail.
        let _ = write!(text, "\n[[tunnel]]\nname = \"t{number}\"\nlocal = \"{local}\"\n");
    }
    let config = folder.write("zproxy.toml", &text)?;
    let start = Start::new(program("zproxy", variant, tools)?, tools.relay_cpus.as_ref())
        .arg("--config")
        .arg(config);
    let mut client = common(start, variant, tools).spawn(&folder)?;
    let public = client.wait_for(|said| {
        let addrs = (0..locals.len())
            .map(|number| ready_addr(said, &format!("tunnel t{number} ready "), "public="));
        addrs.collect::<Option<Vec<_>>>()
    })?;
    let sides = vec![Side::new(vec![gateway]), Side::new(vec![client])];
    Ok(Running { public, sides })
}

pub(super) fn start_forward(
    variant: &Variant,
    locals: &[SocketAddr],
    tools: &Tools,
) -> Result<Running, String> {
    let folder = Folder::new()?;
    let mut start =
        Start::new(program("zproxy", variant, tools)?, tools.relay_cpus.as_ref()).arg("forward");
    for local in locals {
        start = start.args(["--listen", "127.0.0.1:0", "--to"]).arg(local.to_string());
    }
    let mut relay = common(start, variant, tools).spawn(&folder)?;
    let public = relay.wait_for(|said| {
        let ready = said.lines().filter(|line| line.starts_with("forward ready "));
        let addrs: Vec<_> = ready.filter_map(|line| field_addr(line, "listen=")).collect();
        (addrs.len() == locals.len()).then_some(addrs)
    })?;
    Ok(Running { public, sides: vec![Side::new(vec![relay])] })
}

/// The address behind `field` in the line that begins with `prefix`.
fn ready_addr(said: &str, prefix: &str, field: &str) -> Option<SocketAddr> {
    field_addr(said.lines().find(|line| line.starts_with(prefix))?, field)
}

/// An unspecified address is one that loopback reaches.
fn field_addr(line: &str, field: &str) -> Option<SocketAddr> {
    let value = line.split(' ').find_map(|word| word.strip_prefix(field))?;
    let mut addr: SocketAddr = value.parse().ok()?;
    if addr.ip().is_unspecified() {
        addr.set_ip([127, 0, 0, 1].into());
    }
    Some(addr)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The ready lines of the programs tell where to connect.
    #[test]
    fn ready_lines() {
        let said = "a line\nzproxyd ready ctl=127.0.0.1:5 proxy=127.0.0.1:6 backend=uring\n\
            tunnel t1 ready public=[::]:7 local=127.0.0.1:8\n\
            tunnel t10 ready public=0.0.0.0:9 local=127.0.0.1:8\n";
        let addr = |prefix, field| ready_addr(said, prefix, field).map(|addr| addr.to_string());
        assert_eq!(addr("zproxyd ready ", "ctl="), Some("127.0.0.1:5".into()));
        assert_eq!(addr("tunnel t1 ready ", "public="), Some("127.0.0.1:7".into()));
        assert_eq!(addr("tunnel t10 ready ", "public="), Some("127.0.0.1:9".into()));
        assert_eq!(addr("tunnel t2 ready ", "public="), None);
    }
}
