"""Work that several processes share: who they are, how they are started, watched and talk to each other.

process_group   the processes that train an SAE together
worker_process  one worker in a process of its own
progress_meter  what is told of how far work has come
network         by which interface processes of several machines talk
rank_mailbox    processes that train together although some run on other machines
ray_cluster     Ray clusters: joining one, what its nodes have, reserving them
ray_node        what a node of one runs
node_copy       what a node without a shared disk has of a job
"""
