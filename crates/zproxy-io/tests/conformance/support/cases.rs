//! From case to test: one per driver.

use std::process::Command;

/// Set in the child process of a case that needs a process for itself.
const ALONE: &str = "ZPROXY_CONFORMANCE_ALONE";

/// Makes `epoll::case` and `uring::case` of each case.
macro_rules! conformance {
    ($($case:ident),* $(,)?) => {
        on_driver!(epoll, EpollKit, $($case)*);
        on_driver!(uring, UringKit, $($case)*);
    };
}

/// Makes `sim::case` of each case, where the simulated kernel is built in (as it is when the whole
/// workspace is tested). A case that has threads cannot have it.
macro_rules! conformance_simulated {
    ($($case:ident),* $(,)?) => {
        #[cfg(feature = "sim")]
        on_driver!(sim, SimKit, $($case)*);
    };
}

/// As `conformance!`, with drivers that watch awake before they sleep.
macro_rules! conformance_busy {
    ($($case:ident),* $(,)?) => {
        on_driver!(busy_epoll, BusyEpollKit, $($case)*);
        on_driver!(busy_uring, BusyUringKit, $($case)*);
    };
}

macro_rules! on_driver {
    ($module:ident, $kit:ident, $($case:ident)*) => {
        mod $module {
            $(
                #[test]
                fn $case() {
                    $crate::support::judge::<$crate::support::$kit>(super::$case::<$crate::support::$kit>);
                }
            )*
        }
    };
}

/// As `conformance!`, each case in a process of its own, because it meddles with limits of the
/// process or counts its descriptors.
macro_rules! conformance_alone {
    ($($case:ident),* $(,)?) => {
        on_driver_alone!(epoll, EpollKit, $($case)*);
        on_driver_alone!(uring, UringKit, $($case)*);
    };
}

macro_rules! on_driver_alone {
    ($module:ident, $kit:ident, $($case:ident)*) => {
        mod $module {
            $(
                #[test]
                fn $case() {
                    let name = concat!(module_path!(), "::", stringify!($case));
                    $crate::support::alone(name, || {
                        $crate::support::judge::<$crate::support::$kit>(super::$case::<$crate::support::$kit>);
                    });
                }
            )*
        }
    };
}

/// Runs `case`, which is the test called `name` (with the crate's name in front), in a process of
/// its own: this program again, with that one test.
pub(crate) fn alone(name: &str, case: impl FnOnce()) {
    if std::env::var_os(ALONE).is_some() {
        return case();
    }
    let (_, name) = name.split_once("::").expect("a test lies in a module");
    let program = std::env::current_exe().expect("a running program has a path");
    let output = Command::new(program)
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(ALONE, "1")
        .output()
        .expect("this program can be started again");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{name} failed in its own process:\n{text}{}",
        String::from_utf8_lossy(&output.stderr),
    );
}
