#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| zproxy_fuzz::proxy_conn::proxy_conn(bytes));
