# Two machines of one: network namespaces joined by a virtual cable, the command given on each. Run in `unshare -n`.
# Arguments: python, recipe, folder; node I writes to folder/I.
set -e
command="$1 -m bench.cli run $2 --nodes 2 --master 10.9.0.1:29511"
unshare -n sleep 600 &
other=$!
trap 'kill $other' EXIT
sleep 1
ip link set lo up
ip link add near type veth peer name far netns $other
ip addr add 10.9.0.1/24 dev near
ip link set near up
nsenter -t $other -n sh -c 'ip link set lo up; ip addr add 10.9.0.2/24 dev far; ip link set far up'
nsenter -t $other -n $command --node-rank 1 --out "$3/1" > "$3/1.log" 2>&1 &
second=$!
$command --node-rank 0 --out "$3/0" > "$3/0.log" 2>&1
wait $second
