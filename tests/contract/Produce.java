import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Properties;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.serialization.StringSerializer;

/** Sends a file's lines, KEY tab VALUE, with a compression codec: SERVERS TOPIC CODEC FILE. */
public final class Produce {
    public static void main(String[] arguments) throws Exception {
        Properties properties = new Properties();
        properties.put("bootstrap.servers", arguments[0]);
        properties.put("compression.type", arguments[2]);
        properties.put("acks", "all");
        properties.put("linger.ms", "100");
        properties.put("key.serializer", StringSerializer.class.getName());
        properties.put("value.serializer", StringSerializer.class.getName());
        try (KafkaProducer<String, String> producer = new KafkaProducer<>(properties)) {
            for (String line : Files.readAllLines(Path.of(arguments[3]), StandardCharsets.UTF_8)) {
                String[] parts = line.split("\t", 2);
                producer.send(new ProducerRecord<>(arguments[1], parts[0], parts[1]));
            }
        }
    }
}
