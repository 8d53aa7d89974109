//! Other people's relays, each with its own defaults as far as they are about speed; what is set
//! here is what a careful operator would set, and nothing that slows them down.

use std::fmt::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;

use super::child::{Folder, Start, free_ports};
use super::{Running, Side, System, Tools};

/// bore has no flag for it.
const BORE_CONTROL_PORT: u16 = 7835;

/// Connections that a peer with a limit of its own shall accept. With two sockets each, and the
/// pipes that HAProxy adds, it stays below common limits of descriptors.
const CONNS_MAX: u32 = 6_000;

const TOKEN: &str = "a-token-that-guards-a-bench-on-loopback";

/// The first line of the program's own words that holds a number.
pub(super) fn version(peer: &System, tools: &Tools) -> Result<String, String> {
    let (program, flag) = match peer {
        System::Rathole => ("rathole", "--version"),
        System::Bore => ("bore", "--version"),
        System::Ssh => ("sshd", "-V"),
        System::Haproxy => ("haproxy", "-v"),
        System::Nginx => ("nginx", "-v"),
        System::Socat => ("socat", "-V"),
        other => return Err(format!("{other} is no peer")),
    };
    if *peer == System::Nginx {
        stream_module(tools)?;
    }
    if *peer == System::Ssh {
        tools.find("ssh")?;
        tools.find("ssh-keygen")?;
    }
    let output = Command::new(tools.find(program)?).arg(flag).output();
    let output = output.map_err(|why| why.to_string())?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    Ok(version_line(program, &said))
}

fn version_line(program: &str, said: &str) -> String {
    let has_number = |line: &&str| line.contains(|c: char| c.is_ascii_digit());
    let lines = || said.lines().map(str::trim).filter(has_number);
    // rathole prints a paragraph about its build.
    if let Some(tag) = said.lines().find_map(|line| line.strip_prefix("Build Version:")) {
        return format!("{program} {}", tag.trim());
    }
    lines().find(|line| !line.contains("option")).unwrap_or("unknown").to_owned()
}

fn public_addrs(ports: &[u16]) -> Vec<SocketAddr> {
    ports.iter().map(|port| SocketAddr::from(([127, 0, 0, 1], *port))).collect()
}

fn start(program: &str, tools: &Tools) -> Result<Start, String> {
    Ok(Start::new(tools.find(program)?, tools.relay_cpus.as_ref()))
}

pub(super) fn start_rathole(locals: &[SocketAddr], tools: &Tools) -> Result<Running, String> {
    let folder = Folder::new()?;
    let mut ports = free_ports(locals.len() + 1)?;
    let control = ports.pop().unwrap_or_default();
    let mut server =
        format!("[server]\nbind_addr = \"127.0.0.1:{control}\"\ndefault_token = \"{TOKEN}\"\n");
    let mut client =
        format!("[client]\nremote_addr = \"127.0.0.1:{control}\"\ndefault_token = \"{TOKEN}\"\n");
    for (number, (port, local)) in ports.iter().zip(locals).enumerate() {
        // Writing to a string cannot fail.
        let _ = write!(server, "[server.services.t{number}]\nbind_addr = \"127.0.0.1:{port}\"\n");
        let _ = write!(client, "[client.services.t{number}]\nlocal_addr = \"{local}\"\n");
    }
    let server = folder.write("server.toml", &server)?;
    let client = folder.write("client.toml", &client)?;
    let server = start("rathole", tools)?.arg("--server").arg(server).spawn(&folder)?;
    let client = start("rathole", tools)?.arg("--client").arg(client).spawn(&folder)?;
    let sides = vec![Side::new(vec![server]), Side::new(vec![client])];
    Ok(Running { public: public_addrs(&ports), sides })
}

pub(super) fn start_bore(locals: &[SocketAddr], tools: &Tools) -> Result<Running, String> {
    let folder = Folder::new()?;
    if std::net::TcpListener::bind(("127.0.0.1", BORE_CONTROL_PORT)).is_err() {
        return Err(format!("port {BORE_CONTROL_PORT} is taken, and bore can use no other"));
    }
    let server = start("bore", tools)?.args(["server", "--bind-addr", "127.0.0.1"]);
    let mut server = server.spawn(&folder)?;
    server.wait_for(|said| said.contains("listening").then_some(()))?;
    let ports = free_ports(locals.len())?;
    let mut clients = Vec::new();
    for (port, local) in ports.iter().zip(locals) {
        let mut client = start("bore", tools)?
            .args(["local", "--to", "127.0.0.1", "--local-host", "127.0.0.1", "--port"])
            .args([port.to_string(), local.port().to_string()])
            .spawn(&folder)?;
        client.wait_for(|said| said.contains("listening at").then_some(()))?;
        clients.push(client);
    }
    let sides = vec![Side::new(vec![server]), Side::new(clients)];
    Ok(Running { public: public_addrs(&ports), sides })
}

pub(super) fn start_ssh(locals: &[SocketAddr], tools: &Tools) -> Result<Running, String> {
    let folder = Folder::new()?;
    for name in ["host_key", "user_key"] {
        let made = Command::new(tools.find("ssh-keygen")?)
            .args(["-q", "-t", "ed25519", "-N", "", "-f"])
            .arg(folder.path().join(name))
            .status()
            .map_err(|why| format!("ssh-keygen: {why}"))?;
        if !made.success() {
            return Err("ssh-keygen failed".to_owned());
        }
    }
    let mut ports = free_ports(locals.len() + 1)?;
    let control = ports.pop().unwrap_or_default();
    // A privilege that is separated needs this folder, and only root is asked for it.
    if rustix::process::getuid().is_root() {
        let _ = std::fs::create_dir_all("/run/sshd");
    }
    let path = folder.path().display();
    let config = format!(
        "Port {control}\nListenAddress 127.0.0.1\nHostKey {path}/host_key\n\
         AuthorizedKeysFile {path}/user_key.pub\nStrictModes no\nUsePAM no\n\
         PermitRootLogin prohibit-password\nPasswordAuthentication no\nPidFile none\n"
    );
    let config = folder.write("sshd_config", &config)?;
    let server = start("sshd", tools)?.args(["-D", "-e", "-f"]).arg(config);
    let mut server = server.spawn(&folder)?;
    server.wait_for(|said| said.contains("Server listening").then_some(()))?;
    let mut client = start("ssh", tools)?
        .args(["-N", "-F", "none", "-o", "StrictHostKeyChecking=no", "-o", "BatchMode=yes"])
        .args(["-o", "UserKnownHostsFile=/dev/null", "-o", "ExitOnForwardFailure=yes", "-i"])
        .arg(folder.path().join("user_key"))
        .args(["-p".to_owned(), control.to_string()]);
    for (port, local) in ports.iter().zip(locals) {
        client = client.arg("-R").arg(format!("127.0.0.1:{port}:{local}"));
    }
    let client = client.arg("127.0.0.1").spawn(&folder)?;
    let sides = vec![Side::new(vec![server]), Side::new(vec![client])];
    Ok(Running { public: public_addrs(&ports), sides })
}

pub(super) fn start_haproxy(locals: &[SocketAddr], tools: &Tools) -> Result<Running, String> {
    let folder = Folder::new()?;
    let ports = free_ports(locals.len())?;
    let mut config = format!(
        "global\n  maxconn {CONNS_MAX}\ndefaults\n  mode tcp\n  option splice-auto\n  \
         timeout connect 5s\n  timeout client 600s\n  timeout server 600s\n"
    );
    for (number, (port, local)) in ports.iter().zip(locals).enumerate() {
        // Writing to a string cannot fail.
        let _ =
            write!(config, "listen t{number}\n  bind 127.0.0.1:{port}\n  server local {local}\n");
    }
    let config = folder.write("haproxy.cfg", &config)?;
    let relay = start("haproxy", tools)?.arg("-db").arg("-f").arg(config).spawn(&folder)?;
    Ok(Running { public: public_addrs(&ports), sides: vec![Side::new(vec![relay])] })
}

/// Where distributions put the module; none when it is compiled in.
fn stream_module(tools: &Tools) -> Result<Option<PathBuf>, String> {
    let said = Command::new(tools.find("nginx")?).arg("-V").output();
    let said = said.map_err(|why| why.to_string())?;
    let said = String::from_utf8_lossy(&said.stderr).into_owned();
    if said.split_whitespace().any(|word| word == "--with-stream") {
        return Ok(None);
    }
    let own = said.split_whitespace().find_map(|word| word.strip_prefix("--modules-path="));
    let folders = own.into_iter().chain(["/usr/lib/nginx/modules", "/usr/lib64/nginx/modules"]);
    let mut files = folders.map(|folder| PathBuf::from(folder).join("ngx_stream_module.so"));
    let file = files.find(|path| path.is_file());
    file.map(Some).ok_or_else(|| "installed without its stream module".to_owned())
}

pub(super) fn start_nginx(locals: &[SocketAddr], tools: &Tools) -> Result<Running, String> {
    let folder = Folder::new()?;
    let ports = free_ports(locals.len())?;
    let path = folder.path().display();
    let module = stream_module(tools)?
        .map(|module| format!("load_module {};\n", module.display()))
        .unwrap_or_default();
    let user = if rustix::process::getuid().is_root() { "user root;\n" } else { "" };
    let mut config = format!(
        "{module}{user}daemon off;\nworker_processes {};\npid {path}/nginx.pid;\n\
         error_log stderr error;\nevents {{ worker_connections {}; }}\nstream {{\n",
        tools.relay_cpu_count,
        CONNS_MAX * 2,
    );
    for (port, local) in ports.iter().zip(locals) {
        // Writing to a string cannot fail.
        let _ = writeln!(
            config,
            "  server {{ listen 127.0.0.1:{port} backlog=4096; proxy_pass {local}; }}"
        );
    }
    config.push_str("}\n");
    let config = folder.write("nginx.conf", &config)?;
    let relay = start("nginx", tools)?
        .args(["-e", "stderr", "-p"])
        .arg(folder.path())
        .arg("-c")
        .arg(config)
        .spawn(&folder)?;
    Ok(Running { public: public_addrs(&ports), sides: vec![Side::new(vec![relay])] })
}

pub(super) fn start_socat(locals: &[SocketAddr], tools: &Tools) -> Result<Running, String> {
    let folder = Folder::new()?;
    let ports = free_ports(locals.len())?;
    let mut relays = Vec::new();
    for (port, local) in ports.iter().zip(locals) {
        let listen =
            format!("TCP4-LISTEN:{port},bind=127.0.0.1,fork,reuseaddr,backlog=1024,nodelay");
        let relay = start("socat", tools)?.arg(listen).arg(format!("TCP4:{local},nodelay"));
        relays.push(relay.spawn(&folder)?);
    }
    Ok(Running { public: public_addrs(&ports), sides: vec![Side::new(relays)] })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every peer tells its version in its own way.
    #[test]
    fn version_lines() {
        let socat = "socat by Gerhard Rieger and contributors\nsocat version 1.7.4.4 on x\n";
        assert_eq!(version_line("socat", socat), "socat version 1.7.4.4 on x");
        let nginx = "nginx version: nginx/1.22.1\n";
        assert_eq!(version_line("nginx", nginx), "nginx version: nginx/1.22.1");
        let ssh = "unknown option -- V\nOpenSSH_9.2p1 Debian, OpenSSL 3.0\nusage: sshd";
        assert_eq!(version_line("sshd", ssh), "OpenSSH_9.2p1 Debian, OpenSSL 3.0");
        let rathole = "rathole\n\nBuild Timestamp: 2026\nBuild Version: 0.5.0\n";
        assert_eq!(version_line("rathole", rathole), "rathole 0.5.0");
    }
}
