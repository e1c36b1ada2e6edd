"""The same work with the same core in other frameworks, each in an environment of its own.

Every peer takes one JSON argument (:class:`benchmarks.peers.common.Job`), reads the source topic from its
beginning, restores its state from its changelog where it has one, decides with
:class:`stream.pipeline.transactions.TransactionPipeline`, and sends alerts and decisions to topics of its
own.
"""
