"""The only package that touches Faust's private names (faust-streaming 0.15.3).

Each item states upstream's behaviour and the reason to change it. The tests of this package hold a
``test_upstream_...`` for each item, which fails once a Faust release makes the change unnecessary.

1. :class:`BatchConsumer`: one event per fetch. Upstream pays several asyncio tasks per message; a fetch of
   two thousand pays them once. And it commits what :meth:`BatchConsumer.done` was told, nothing else:
   upstream takes an event for processed when the agent moves on from it, be it by an exception (#527, #315)
   or because a rebalance took the partition away meanwhile. And it hands on no source records until a
   rebalance is through: upstream fetches them before it lets the streams flow, which empties their queues.
   It follows each partition's offsets, so that whatever was fetched and handed to nobody is fetched again,
   and nothing is taken before it; and a restore that waits for records which do not come seeks them again.
2. :class:`RocksDBStore`: reads and writes by partition from outside a stream's event, one write batch
   with the changelog's offset in it (upstream writes key by key, and the offset on its own: after a
   SIGKILL the two disagree, #193, #502), bounded memory, databases closed when they are given up.
3. :class:`StreamApp`: upstream may wait forever for events that will never be acknowledged (#527); here
   a stop and a rebalance wait for the batch under way and nothing else.
4. Fetches wait 1.5 s for records upstream. A partition whose records were just taken is not in the fetch
   under way, so its next ones wait for that fetch to end (aiokafka sends one per node): a skewed stream
   pays up to all of it. The setting ``kafka.fetch_max_wait_ms`` bounds it.
5. :class:`HistoryTable`: takes the store above, restores whole fetched batches at a time (upstream:
   record by record), and leaves the declaration of topics to ``riskstream topics``.
6. Commits carry Kafka's id of their topic. A topic that was deleted and made again keeps the group's
   offsets, and upstream would go on at them in records of another topic; and where offsets go back under a
   running worker it drops records without a word.
7. :class:`_SlimRecords`: aiokafka makes a frozen dataclass of eleven fields of each record, for 3 us; the
   pipeline's own five are made instead, once.
8. A database that cannot be opened because it is damaged is put aside and restored from the changelog;
   upstream ends, and again whenever it is started.
9. :class:`Assignor`: upstream asserts that an assignment carries the worker's own address, and dies where a
   worker with a ``group_instance_id`` comes back with another one.
"""
