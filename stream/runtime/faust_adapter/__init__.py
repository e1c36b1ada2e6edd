"""The only package that touches Faust's private names (faust-streaming 0.15.3).

Each item states upstream's behaviour and the reason to change it. The tests of this package have a
``test_upstream_...`` for each item, which fails once a Faust release makes the change unnecessary.

1. :class:`.BatchConsumer` delivers one event per fetch. Upstream spends several asyncio tasks on each
   message; a fetch of two thousand spends them once. The consumer commits the offsets passed to
   :meth:`.BatchConsumer.done` and nothing else: upstream considers an event processed when the agent moves on
   from it, even after an exception (#527, #315) or after a rebalance took the partition away. It delivers no
   source records until a rebalance is complete: upstream fetches them before it resumes the flow, and
   resuming empties the streams' queues. It follows each partition's offsets, so that records that were
   fetched and not delivered are fetched again, and nothing is delivered before them. A restore whose records
   do not arrive seeks them again.
2. :class:`.RocksDBStore` reads and writes by partition from outside a stream's event, in one write batch with
   the changelog's offset (upstream writes key by key, and the offset separately: after a SIGKILL the two
   disagree, #193, #502). Its memory is bounded, and it closes the databases of revoked partitions.
3. :class:`.StreamApp`: a stop and a rebalance wait for the micro-batches in progress and for nothing else;
   upstream may wait forever for events that are never acknowledged (#527).
4. Upstream's fetches wait 1.5 s for records. A partition whose records were just delivered is not part of the
   fetch in progress, so its next records wait for that fetch to end (aiokafka sends one per node): a skewed
   stream waits up to 1.5 s. The setting ``kafka.fetch_max_wait_ms`` bounds the wait.
5. :class:`.HistoryTable` uses the store above, restores whole fetched batches at a time (upstream: record by
   record), and leaves the declaration of topics to ``riskstream topics``.
6. Commits carry Kafka's id of their topic. A topic that was deleted and created again keeps the group's
   offsets, and upstream would continue at them among the records of another topic; and if offsets go back
   under a running worker, upstream drops records silently.
7. :mod:`.records`: aiokafka creates a frozen dataclass of eleven fields for each record, which takes 3 µs;
   here each record is created once, with the pipeline's five fields.
8. A database that cannot be opened because it is damaged is set aside and restored from the changelog;
   upstream ends, and ends again at every start.
9. :class:`.Assignor`: upstream asserts that an assignment carries the worker's own address, and crashes if a
   worker with a ``group_instance_id`` returns with another address.
10. :mod:`.records`: aiokafka decompresses a whole batch at once, whatever its size, and one header name that
   is not UTF-8 makes its batch unreadable for ever. Here a batch is decompressed within a bound, a batch that
   the client cannot parse is read record by record, and one that is damaged is named and can be skipped.
11. :class:`.BatchConsumer` follows the consumer's position past markers, aborted transactions and expired
   offsets, and commits it. Upstream counts them as lag for as long as nothing follows them. The isolation
   level is a setting; upstream ties ``read_committed`` to its own transactions.
"""
