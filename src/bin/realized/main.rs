//! The daemon `realized`.

fn main() {
    eprintln!("realized: serving other hosts is not built yet; use `realize SRC DST` between local directories");
    std::process::exit(2);
}
