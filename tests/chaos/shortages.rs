//! Descriptors run out, and disks fill up, while the programs serve.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use zproxy_tests::net::connect;
use zproxy_tests::netns::Place;
use zproxy_tests::visits::{self, Talk};
use zproxy_tests::{Load, Rng, Site, both_backends, eventually, proc};

use crate::{IS_FULL, length};

/// Until everything is as before.
const BACK_DEADLINE: Duration = Duration::from_secs(60);

/// More than a log disk of that size has room for.
const FLOWS_ON_A_FULL_DISK: u64 = if IS_FULL { 3_000 } else { 300 };

/// Takes away every descriptor that a process does not use yet, and gives them back when dropped.
struct Shortage {
    pid: Pid,
    before: Option<u64>,
}

impl Shortage {
    fn of(pid: u32) -> Self {
        let number = i32::try_from(pid).ok().and_then(Pid::from_raw).expect("a pid");
        let highest = fs::read_dir(format!("/proc/{pid}/fd"))
            .expect("its descriptors")
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u64>().ok())
            .max();
        let scarce = limit(highest.map(|highest| highest + 1));
        let before = prlimit(Some(number), Resource::Nofile, scarce).expect("a limit");
        Self { pid: number, before: before.current }
    }
}

/// The hard limit stays what this process and its children have.
fn limit(current: Option<u64>) -> Rlimit {
    Rlimit { current, maximum: getrlimit(Resource::Nofile).maximum }
}

impl Drop for Shortage {
    fn drop(&mut self) {
        // The process may be gone, which the test notices by other means.
        let _ = prlimit(Some(self.pid), Resource::Nofile, limit(self.before));
    }
}

/// A log directory on a disk of its own, in the mount namespace of the program that mounted it.
struct LogDisk {
    seen_from_here: PathBuf,
}

const DISK: &str = "512k";

impl LogDisk {
    fn launcher(place: &Place, dir: &Path) -> Vec<OsString> {
        let dir = dir.display();
        let mount = format!("mount -t tmpfs -o size={DISK} tmpfs {dir}");
        place.launcher_after(&format!("mkdir -p {dir} && {mount}"))
    }

    fn of(pid: u32, dir: &Path) -> Self {
        Self { seen_from_here: PathBuf::from(format!("/proc/{pid}/root{}", dir.display())) }
    }

    fn filler(&self) -> PathBuf {
        self.seen_from_here.join("filler")
    }

    /// Writes until nothing more fits.
    fn fill(&self) {
        let mut filler = File::create(self.filler()).expect("a file on the small disk");
        let mut piece = 4_096;
        while piece > 0 {
            if filler.write_all(&vec![0; piece]).is_err() {
                piece /= 2;
            }
        }
    }

    fn relieve(&self) {
        fs::remove_file(self.filler()).expect("the filler goes");
    }

    fn lines(&self, wanted: &str) -> usize {
        let files = fs::read_dir(&self.seen_from_here).expect("the log directory").flatten();
        let logs = files.filter(|file| file.path() != self.filler());
        let texts = logs.map(|file| fs::read(file.path()).unwrap_or_default());
        texts.map(|text| String::from_utf8_lossy(&text).matches(wanted).count()).sum()
    }
}

both_backends! {
    /// Neither program gets another descriptor for a while, first one, then the other, then both, under
    /// load: the flow that is open echoes on, no byte is wrong, and when descriptors are to be had again
    /// everybody is served and nothing is left over.
    fn descriptors_are_exhausted(world) {
        Site::run(|net| {
            let (gateway, client) = Site::plans(world, &net);
            let mut site = Site::start(world, net, gateway, client);
            let frames = site.frames();
            let pids = [site.gateway.pid(), site.client.pid()];
            let mut rng = Rng::seeded("descriptors are exhausted");
            let load = Load::start(site.public, 6, 500_000, Rng::new(rng.next()));
            for short in [&pids[..1], &pids[1..], &pids[..]] {
                assert!(load.has_progress(20, BACK_DEADLINE), "no progress before");
                let disturbance = load.disturb();
                let conn = connect(site.public);
                let mut talk = Talk::begin(&conn, 1).expect("a first answer");
                let shortages: Vec<_> = short.iter().map(|pid| Shortage::of(*pid)).collect();
                let until = Instant::now() + length(2, 10);
                while Instant::now() < until {
                    talk.say().expect("an answer during the shortage");
                }
                drop(shortages);
                drop(talk);
                drop(conn);
                site.expect_service(BACK_DEADLINE);
                drop(disturbance);
            }
            assert!(load.has_progress(20, BACK_DEADLINE), "no progress afterwards");
            site.expect_pause(&load, BACK_DEADLINE);
            site.expect_no_faults(&load, &site.local);
            assert_eq!([site.gateway.pid(), site.client.pid()], pids);
            assert_eq!((site.gateway.try_exit(), site.client.try_exit()), (None, None));
            site.expect_calm(frames);
        });
    }
    /// The disk under both log directories is full: visitors are served as ever, memory does not grow,
    /// and log lines come again when there is room.
    fn the_log_disk_is_full(world) {
        Site::run(|net| {
            let dirs = [world.dir().join("gateway-log"), world.dir().join("client-log")];
            let log_dir = |dir: &Path| ["--log-dir".to_owned(), dir.display().to_string()];
            let [gateway_log, client_log] = [log_dir(&dirs[0]), log_dir(&dirs[1])];
            let (gateway, client) = Site::plans(world, &net);
            let gateway = gateway
                .launcher(LogDisk::launcher(&net.gateway, &dirs[0]))
                .args(gateway_log.iter().map(String::as_str));
            let client = client
                .launcher(LogDisk::launcher(&net.client, &dirs[1]))
                .args(client_log.iter().map(String::as_str));
            let mut site = Site::start(world, net, gateway, client);
            let pids = [site.gateway.pid(), site.client.pid()];
            let disks = [LogDisk::of(pids[0], &dirs[0]), LogDisk::of(pids[1], &dirs[1])];
            let load = Load::start(site.public, 6, 300_000, Rng::seeded("the log disk is full"));
            let flows = |disk: &LogDisk| disk.lines("flow ended");
            assert!(load.has_progress(100, BACK_DEADLINE), "no progress before");
            for disk in &disks {
                eventually("the log has flows", BACK_DEADLINE, || flows(disk) > 50);
                disk.fill();
            }
            let full = disks.each_ref().map(flows);
            let before = pids.map(proc::resident_bytes);
            assert!(load.has_progress(FLOWS_ON_A_FULL_DISK, 3 * BACK_DEADLINE), "no progress");
            for ((disk, then), (pid, resident)) in disks.iter().zip(full).zip(pids.into_iter().zip(before)) {
                assert!(flows(disk) < then + 50, "the disk is not full");
                let grown = proc::resident_bytes(pid).saturating_sub(resident);
                assert!(grown < 32 << 20, "{grown} bytes of memory more");
                disk.relieve();
            }
            let full = disks.each_ref().map(flows);
            for (disk, then) in disks.iter().zip(full) {
                eventually("the log goes on", BACK_DEADLINE, || flows(disk) > then + 50);
            }
            assert!(load.pause(BACK_DEADLINE), "visits do not end");
            assert_eq!(load.faults(), Vec::<String>::new());
            assert_eq!(load.counts().broken, 0);
            assert_eq!(visits::inexcusable(&site.local), Vec::<String>::new());
            for program in [&mut *site.pair.gateway, &mut *site.pair.client] {
                program.terminate();
                assert_eq!(program.wait_exit(BACK_DEADLINE), 0);
            }
        });
    }
}
