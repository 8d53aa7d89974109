//! The built-in web service: HTTP/1.1 with keep-alive, and a page that shows what the request looked
//! like when it arrived here.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Connections served at a time; the next one is told to come back later.
const CONNS_MAX: usize = 64;

/// Bytes of request head that are read before the request is refused.
const HEAD_BYTES_MAX: u64 = 16 * 1024;

/// Bytes of request body that are read and thrown away before the connection is closed instead.
const BODY_BYTES_MAX: u64 = 1024 * 1024;

/// How long a connection may be silent.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// Serves connections of `listener` on threads of its own, for the life of the program.
pub(crate) fn serve(listener: TcpListener) {
    let open = Arc::new(AtomicUsize::new(0));
    std::thread::spawn(move || {
        for conn in listener.incoming().flatten() {
            if open.load(Ordering::Relaxed) >= CONNS_MAX {
                let _ = respond(&conn, "503 Service Unavailable", "text/plain", "busy\n", false);
                continue;
            }
            open.fetch_add(1, Ordering::Relaxed);
            let open = Arc::clone(&open);
            std::thread::spawn(move || {
                let _ = converse(&conn);
                open.fetch_sub(1, Ordering::Relaxed);
            });
        }
    });
}

fn converse(conn: &TcpStream) -> std::io::Result<()> {
    conn.set_read_timeout(Some(IDLE_TIMEOUT))?;
    conn.set_write_timeout(Some(IDLE_TIMEOUT))?;
    conn.set_nodelay(true)?;
    let peer = conn.peer_addr()?.to_string();
    let mut reader = BufReader::new(conn);
    loop {
        let Some(request) = Request::read(&mut reader)? else { return Ok(()) };
        let keep = request.keeps_alive() && request.skip_body(&mut reader)?;
        let wants_html = request.header("accept").is_some_and(|accept| accept.contains("html"));
        let (kind, body) = if wants_html {
            ("text/html; charset=utf-8", html_page(&request, &peer))
        } else {
            ("text/plain; charset=utf-8", text_page(&request, &peer))
        };
        let body = if request.method == "HEAD" { String::new() } else { body };
        respond(conn, "200 OK", kind, &body, keep)?;
        if !keep {
            return Ok(());
        }
    }
}

fn respond(
    mut conn: &TcpStream,
    status: &str,
    kind: &str,
    body: &str,
    keep: bool,
) -> std::io::Result<()> {
    let connection = if keep { "keep-alive" } else { "close" };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\
         Connection: {connection}\r\nCache-Control: no-store\r\n\r\n",
        body.len()
    );
    conn.write_all((head + body).as_bytes())
}

/// What a browser or curl asked for.
struct Request {
    method: String,
    path: String,
    version: String,
    headers: Vec<(String, String)>,
}

impl Request {
    /// Reads one request head; `None` when the peer has nothing more to ask.
    fn read(reader: &mut BufReader<&TcpStream>) -> std::io::Result<Option<Self>> {
        let mut head = reader.take(HEAD_BYTES_MAX);
        let mut line = String::new();
        if head.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let mut words = line.split_whitespace();
        let (Some(method), Some(path), Some(version)) = (words.next(), words.next(), words.next())
        else {
            return Ok(None);
        };
        let mut request = Self {
            method: method.to_owned(),
            path: path.to_owned(),
            version: version.to_owned(),
            headers: Vec::new(),
        };
        loop {
            let mut line = String::new();
            if head.read_line(&mut line)? == 0 {
                return Ok(None);
            }
            let line = line.trim_end();
            if line.is_empty() {
                return Ok(Some(request));
            }
            if let Some((name, value)) = line.split_once(':') {
                request.headers.push((name.trim().to_owned(), value.trim().to_owned()));
            }
        }
    }

    fn header(&self, name: &str) -> Option<&str> {
        let mut found = self.headers.iter().filter(|(have, _)| have.eq_ignore_ascii_case(name));
        found.next().map(|(_, value)| value.as_str())
    }

    fn keeps_alive(&self) -> bool {
        match self.header("connection") {
            Some(value) => value.eq_ignore_ascii_case("keep-alive"),
            None => self.version == "HTTP/1.1",
        }
    }

    /// Throws the body away; false when it is too long, or of a length this service cannot tell.
    fn skip_body(&self, reader: &mut BufReader<&TcpStream>) -> std::io::Result<bool> {
        if self.header("transfer-encoding").is_some() {
            return Ok(false);
        }
        let length = self.header("content-length").map_or(Ok(0), str::parse::<u64>);
        match length {
            Ok(length) if length <= BODY_BYTES_MAX => {
                let skipped = std::io::copy(&mut reader.take(length), &mut std::io::sink())?;
                Ok(skipped == length)
            }
            Ok(_) | Err(_) => Ok(false),
        }
    }
}

fn text_page(request: &Request, peer: &str) -> String {
    let mut page = format!(
        "Hello from behind ZProxy.\n\n{} {} {}\nlocal peer: {peer}\n",
        request.method, request.path, request.version
    );
    for (name, value) in &request.headers {
        page += &format!("{name}: {value}\n");
    }
    page
}

fn html_page(request: &Request, peer: &str) -> String {
    let rows: String = request
        .headers
        .iter()
        .map(|(name, value)| format!("<tr><th>{}</th><td>{}</td></tr>", plain(name), plain(value)))
        .collect();
    format!(
        "<!doctype html><html lang=en><meta charset=utf-8><title>ZProxy demo</title>\
         <style>body{{font:16px/1.5 system-ui,sans-serif;max-width:46rem;margin:3rem auto;\
         padding:0 1rem;color:#223}}h1{{font-size:1.6rem}}code{{background:#eef;padding:.1em .3em}}\
         table{{border-collapse:collapse;font:14px/1.6 monospace}}th{{text-align:left;\
         padding-right:1.5rem;color:#557;vertical-align:top}}td{{word-break:break-all}}</style>\
         <h1>Hello from behind ZProxy</h1>\
         <p>This page is served by a small web service that listens on a private address. Your \
         request came in at the gateway's public port and travelled here through the tunnel.</p>\
         <p>You asked for <code>{} {}</code>; to the service, your connection comes from \
         <code>{}</code>, which is the client.</p><table>{rows}</table></html>\n",
        plain(&request.method),
        plain(&request.path),
        plain(peer),
    )
}

/// Text that a browser shows as it is.
fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            other => out.push(other),
        }
    }
    out
}
