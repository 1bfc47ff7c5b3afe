//! The contract suite of `realize::fs` on every implementation.

mod sim {
    use std::sync::Arc;

    use realize_sim::{
        contract::Bench,
        fs::{Machine, SimFs},
    };

    fn bench() -> Bench<SimFs> {
        let disk = Machine::new(1).disk(1);
        disk.mkdir_all("root").unwrap();
        let fs = disk.fs();
        let fifo = move |name: &realize::model::Name| disk.fifo([b"root/", name.as_bytes()].concat()).unwrap();
        Bench {
            fs,
            path: "/root".into(),
            fifo: Box::new(fifo),
            keep: Box::new(Arc::new(())),
        }
    }

    realize_sim::contract_suite!(bench());
}
